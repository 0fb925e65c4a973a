"""Make everything again that hangs on the embedded model's weights: `python scripts/remake.py RUNS`.

Give it after `pretrain export` and `pretrain report` wrote new weights and their card into the package. It runs the
studies side by side, one on each core, copies their tables into the package, draws the pictures of the first pages and
executes the chapters; then `make test` says which sentences no longer hold. RUNS gets a folder for each model, with the
studies' own folders and a log of each: what was stopped goes on, what is finished is left.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from seg4diff_tools import load_backbone
from seg4diff_tools.caching import model_fingerprint

ROOT = Path(__file__).parents[1]
STUDIES = ("magnet", "perturbation", "heads", "sinks", "placing")  # the longest first


def run(name: str, command: list[str], folder: Path) -> str | None:
    """Run one step unless it is done; its output goes to a log. Returns what went wrong."""
    done, log = folder / f"{name}.done", folder / f"{name}.log"
    if done.exists():
        return None
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    with log.open("w", encoding="utf-8") as file:
        ended = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=file, stderr=file, check=False
        )
    if ended.returncode:
        return f"{name} failed: see {log}"
    done.touch()
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="studies side by side")
    parser.add_argument("--studies", nargs="*", choices=STUDIES, default=list(STUDIES))
    options = parser.parse_args()
    folder = options.runs.resolve() / model_fingerprint(load_backbone("mini"))[:12]
    folder.mkdir(parents=True, exist_ok=True)
    studies = {name: [f"scripts/{name}_study.py", str(folder / name), "--ship"] for name in options.studies}
    with ThreadPoolExecutor(options.jobs) as pool, tqdm(total=len(studies), desc="studies", unit="study") as bar:
        waiting = [pool.submit(run, name, command, folder) for name, command in studies.items()]
        failures = []
        for each in as_completed(waiting):
            if failure := each.result():
                failures.append(failure)
            bar.update()
    if failures:
        sys.exit("\n".join(failures))
    chapters = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    for name, command in {
        "pictures": ["scripts/make_overview.py"],
        "chapters": ["book/execute.py", "--jobs", str(options.jobs), *chapters],
    }.items():
        print(name)
        if failure := run(name, command, folder):
            sys.exit(failure)


if __name__ == "__main__":
    main()
