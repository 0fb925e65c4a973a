"""Find the layer that segments best: python examples/sweep_layers.py images/ masks/ names.txt --model NAME

Masks are PNGs whose value i is line i of names.txt; without arguments it sweeps drawn scenes. Every second image
chooses the layer and the step, and the others say how good they are, so that the choice does not flatter itself.
"""

import argparse
from pathlib import Path

from seg4diff_tools import OpenVocabulary, datasets, evaluate, layer_step_sweep, load_backbone, scenes

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("images", nargs="?")
parser.add_argument("masks", nargs="?")
parser.add_argument("names", nargs="?")
parser.add_argument("--model", default="mini")
parser.add_argument("--limit", type=int, default=12)
options = parser.parse_args()

if options.names:
    names = Path(options.names).read_text(encoding="utf-8").split("\n")
    samples = datasets.folder(options.images, options.masks, [name for name in names if name])
else:
    samples = scenes.Scenes("test", options.limit)
chosen_on, judged_on = ([samples[i] for i in range(start, min(len(samples), options.limit), 2)] for start in (0, 1))

backbone = load_backbone(options.model)
table = layer_step_sweep(backbone, chosen_on, steps_from_end=[4, 8, 12], progress=False).table()
print(table.nlargest(5, "mIoU")[["layer", "steps_from_end", "mIoU", "low", "high"]].round(3).to_string(index=False))
best = table.loc[table.mIoU.idxmax()]
reading = OpenVocabulary(layers=int(best.layer), steps_from_end=int(best.steps_from_end))
judged = evaluate(backbone, judged_on, {"chosen": reading, "default": OpenVocabulary()}, progress=False)
print(judged.table()[["method", "mIoU", "low", "high"]].round(3).to_string(index=False))
