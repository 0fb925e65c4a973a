"""Draw the README's picture, book/images/overview.png: python scripts/make_overview.py"""

import io
from pathlib import Path

from PIL import Image

from seg4diff_tools import load_backbone, scenes, segment
from seg4diff_tools.plotting import static

SCENE = 21  # of the gallery
OUT = Path(__file__).parents[1] / "book" / "images" / "overview.png"


def main() -> None:
    backbone = load_backbone("mini")
    scene = scenes.gallery()[SCENE]
    result = segment(backbone, scene.image, scene.class_names)
    title = f"What {backbone.name}, layer {backbone.expert_layer}, gives to each class name"
    figures = [
        static.map_strip(scene.image, result.class_maps, title=title),
        static.label_maps(scene.image, {"truth": scene.label_map, "found": result.label_map}, scene.class_names),
    ]
    pictures = []
    for figure in figures:
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=110)
        pictures.append(Image.open(drawn).convert("RGB"))
    whole = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    whole.paste(pictures[0], (0, 0))
    whole.paste(pictures[1], (0, pictures[0].height))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    whole.save(OUT, optimize=True)


if __name__ == "__main__":
    main()
