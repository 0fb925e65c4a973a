"""Segment one image by words: python examples/segment_photo.py photo.jpg cat sofa --model NAME --out masks.png

Without arguments it segments a drawn scene with the embedded model, which knows drawings and no photographs.
"""

import argparse

from seg4diff_tools import OpenVocabulary, load_backbone, plotting, scenes, segment

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("image", nargs="?")
parser.add_argument("words", nargs="*")
parser.add_argument("--model", default="mini")
parser.add_argument("--out", default="masks.png")
options = parser.parse_args()

scene = scenes.scene("gallery", 21)
image = options.image or scene.image
words = options.words or scene.class_names

backbone = load_backbone(options.model)
# the expert layer as in the paper, and every layer together with edges that follow the image
readings = {
    "one layer": OpenVocabulary(),
    "all layers, guided": OpenVocabulary(layers=range(backbone.layers), upsampling="guided"),
}
found = {name: segment(backbone, image, words, reading) for name, reading in readings.items()}
for name, result in found.items():
    shares = [(result.label_map == index).mean() for index in range(len(words))]
    print(f"{name}: " + ", ".join(f"{word} {share:.0%}" for word, share in zip(words, shares, strict=True)))
plotting.label_maps(image, {name: one.label_map for name, one in found.items()}, words).savefig(options.out)
print(options.out)
