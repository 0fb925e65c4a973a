"""Edit attention while a picture is drawn: python examples/edit_drawing.py "a red car and a blue bus on road" car bus

Four pictures from one noise: as written, words blurred in one layer, two words swapped, guided away from the blur.
"""

import argparse
from contextlib import AbstractContextManager, nullcontext

from seg4diff_tools import load_backbone, plotting
from seg4diff_tools.attention import apply_edit, blur, perturbed_guidance, swap

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("prompt", nargs="?", default="a red car and a blue bus on road")
parser.add_argument("first", nargs="?", default="car")
parser.add_argument("second", nargs="?", default="bus")
parser.add_argument("--model", default="mini")
parser.add_argument("--steps", type=int, default=12)
parser.add_argument("--out", default="edited.png")
options = parser.parse_args()

backbone = load_backbone(options.model)
layer = backbone.layers // 2 if backbone.expert_layer is None else backbone.expert_layer
prompt = backbone.encode_prompt(options.prompt)
edits: dict[str, AbstractContextManager] = {
    "as written": nullcontext(),
    f"blurred in layer {layer}": apply_edit(backbone, blur(), layers=layer),
    "swapped": apply_edit(backbone, swap(prompt.span(options.first), prompt.span(options.second))),
    "guided away": perturbed_guidance(backbone, blur(), layers=layer, scale=2.0),
}
pictures = []
for edit in edits.values():
    with edit:
        pictures += backbone.generate(prompt, steps=options.steps, seed=0, progress=False)
plotting.picture_grid(pictures, list(edits), columns=4, title=options.prompt).savefig(options.out)
print(options.out)
