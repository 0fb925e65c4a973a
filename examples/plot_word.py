"""Record attention while a picture is drawn, and plot a word: python examples/plot_word.py "a cat on grass" cat

Writes the picture with the word's map at several steps, and the recording, which `explore` opens again.
"""

import argparse

from seg4diff_tools import AttentionRecorder, load_backbone, plotting

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("prompt", nargs="?", default="a balloon on grass")
parser.add_argument("word", nargs="?", default="balloon")
parser.add_argument("--model", default="mini")
parser.add_argument("--steps", type=int, default=28)
parser.add_argument("--out", default="word")
options = parser.parse_args()

backbone = load_backbone(options.model)
layer = backbone.layers // 2 if backbone.expert_layer is None else backbone.expert_layer
prompt = backbone.encode_prompt(options.prompt)
with AttentionRecorder(backbone, prompt=prompt, layers=layer, tokens=[options.word]) as recorder:
    (picture,) = backbone.generate(prompt, steps=options.steps, seed=3, progress=False)

maps = recorder.maps.sel(token=options.word, branch="cond").squeeze()  # step, y, x
shown = maps.isel(step=slice(0, None, max(1, options.steps // 6)))
plotting.map_strip(picture, shown, title=f"{options.word}, layer {layer}").savefig(f"{options.out}.png")
recorder.recording.save(f"{options.out}.nc")
print(f"{options.out}.png, {options.out}.nc")
