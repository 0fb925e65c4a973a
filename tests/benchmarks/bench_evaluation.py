"""Whether an evaluation's cost for an image grows with the number of images: python -m
tests.benchmarks.bench_evaluation [--csv FILE]

Evaluates 2,000 scenes with the embedded model, in both protocols, and writes down time and memory after every 100.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import psutil

from seg4diff_tools import Scenes, evaluate, load_backbone


class Watched(Sequence):
    """Scenes that write down time and memory when every 100th is asked for."""

    def __init__(self, scenes: Scenes) -> None:
        self.scenes, self.class_names, self.rows = scenes, scenes.class_names, []
        self.began = time.perf_counter()

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int):
        if index % 100 == 0:
            self.note(index)
        return self.scenes[index]

    def note(self, images: int) -> None:
        memory = psutil.Process().memory_info().rss / 2**20
        self.rows.append({"images": images, "seconds": time.perf_counter() - self.began, "MiB": memory})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    backbone, watched = load_backbone("mini"), Watched(Scenes("test", arguments.images))
    with tempfile.TemporaryDirectory() as folder:
        result = evaluate(backbone, watched, protocol=["present", "full"], out=folder)
        watched.note(arguments.images)
        disk = sum(path.stat().st_size for path in Path(folder, "counts").iterdir()) / arguments.images
    table = pd.DataFrame(watched.rows)
    table["seconds_per_image"] = table["seconds"].diff() / table["images"].diff()
    print(table.round(3).to_string(index=False))
    print(result.table().round(3).to_string(index=False))
    print(f"{result.throughput()}; {disk:.0f} bytes on disk for an image")
    if arguments.csv:
        table.round(3).to_csv(arguments.csv, index=False)


if __name__ == "__main__":
    main()
