"""Score methods on your own images and masks: python examples/evaluate_folder.py images/ masks/ names.txt --model NAME

Masks are PNGs named like the images, whose value i is line i of names.txt and 255 is left out. Without arguments it
writes such folders of drawn scenes into `demo`. A stopped run goes on where it was.
"""

import argparse
from pathlib import Path

from PIL import Image

from seg4diff_tools import OpenVocabulary, datasets, evaluate, load_backbone, scenes

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("images", nargs="?", type=Path, default=Path("demo/images"))
parser.add_argument("masks", nargs="?", type=Path, default=Path("demo/masks"))
parser.add_argument("names", nargs="?", type=Path, default=Path("demo/names.txt"))
parser.add_argument("--model", default="mini")
parser.add_argument("--out", default="demo/run")
options = parser.parse_args()

if options.names == Path("demo/names.txt"):
    drawn = scenes.Scenes("test", 8)
    options.images.mkdir(parents=True, exist_ok=True)
    options.masks.mkdir(parents=True, exist_ok=True)
    options.names.write_text("\n".join(drawn.class_names), encoding="utf-8")
    for number, scene in enumerate(drawn):
        scene.pil.save(options.images / f"{number}.png")
        numbers = [drawn.class_names.index(name) for name in scene.class_names]
        mask = sum((scene.label_map == i) * value for i, value in enumerate(numbers))
        Image.fromarray(mask.astype("uint8")).save(options.masks / f"{number}.png")

names = [line for line in options.names.read_text(encoding="utf-8").splitlines() if line]
samples = datasets.folder(options.images, options.masks, names)
methods = {"one layer": OpenVocabulary(), "guided": OpenVocabulary(upsampling="guided")}
result = evaluate(load_backbone(options.model), samples, methods, ["present", "full"], out=options.out)
print(result.table()[["method", "protocol", "images", "mIoU", "low", "high"]].round(3).to_string(index=False))
for protocol in ("present", "full"):
    rows = [{"method": name, "protocol": protocol} for name in ("guided", "one layer")]
    print(f"{protocol}: {result.verdict(*rows)}")
