"""Draw the pictures of the first pages, into book/images: python scripts/make_overview.py

- overview.png: a scene, what each word attends to in it, and the masks that follow.
- front_view.html: an explorer of the same scene, as a fragment of a page.
- ten_minutes_N.png: what block N of book/ten_minutes.md draws, which is run as it stands; and the table of its scores.
"""

import ast
import io
import re
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from seg4diff_tools import explore, load_backbone, scenes, segment
from seg4diff_tools.explorer.page import fragment
from seg4diff_tools.plotting import static

BOOK = Path(__file__).parents[1] / "book"
IMAGES = BOOK / "images"
PAGE = BOOK / "ten_minutes.md"
SCENE = 21  # of the gallery
STEPS = [0, 12, 20, 26]
STORED = 200_000  # characters of maps


def overview() -> None:
    """One row: the image, the map of each class name, and the masks, in the colors of which the names are written."""
    backbone = load_backbone("mini")
    scene = scenes.scene("gallery", SCENE)
    result = segment(backbone, scene.image, scene.class_names)
    pictures = [
        scene.image,
        *(static.overlay(scene.image, values, opacity=0.6) for values in result.class_maps.values),
        static.label_overlay(scene.image, result.label_map),
    ]
    titles = ["an image", *(f"“{name}”" for name in scene.class_names), "masks"]
    colors = ["black", *(tuple(color / 255) for color in static.class_colors(len(scene.class_names))), "black"]
    figure, axes = plt.subplots(1, len(pictures), figsize=(2.0 * len(pictures), 2.4), layout="constrained")
    for axis, picture, title, color in zip(axes, pictures, titles, colors, strict=True):
        axis.imshow(picture)
        axis.set_title(title, fontsize=15, color=color, fontweight="bold")
        axis.axis("off")
    save(figure, "overview.png")
    plt.close(figure)


def front_view() -> None:
    """An explorer with all layers and a few steps, small enough for the first page."""
    backbone = load_backbone("mini")
    scene = scenes.scene("gallery", SCENE)
    name = scene.objects[0]
    view = explore(backbone, scene.image, prompt=scene.caption, token=name, record={"steps": STEPS}, step=STEPS[2])
    (IMAGES / "front_view.html").write_text(fragment(view.stored(STORED)) + "\n", encoding="utf-8")
    view.close()


def ten_minutes() -> None:
    """Run the blocks of the page, and keep what they draw and the scores."""
    names: dict[str, Any] = {"__name__": "__main__"}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for number, block in enumerate(blocks, 1):
        *statements, last = ast.parse(block).body
        assert isinstance(last, ast.Expr), f"block {number} ends with what it shows"
        exec(compile(ast.Module(statements, []), f"block {number}", "exec"), names)
        shown = eval(compile(ast.Expression(last.value), f"block {number}", "eval"), names)
        if isinstance(shown, Figure):
            save(shown, f"ten_minutes_{number}.png")
    (BOOK / "ten_minutes_score.md").write_text(score_table(names["scores"].table()), encoding="utf-8")


def save(figure: Figure, name: str) -> None:
    """Write a figure with 256 colors, a third of the bytes."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    Image.open(drawn).convert("RGB").quantize(256).save(IMAGES / name, optimize=True)


def score_table(table: Any) -> str:
    """The mIoU of each method as a Markdown table."""
    rows = [
        f"| {row.method} | {100 * row.mIoU:.1f} % | {100 * row.low:.1f} to {100 * row.high:.1f} % |"
        for row in table.itertuples()
    ]
    return "\n".join(["| method | mIoU | 95 % interval |", "| --- | --- | --- |", *rows]) + "\n"


if __name__ == "__main__":
    matplotlib.use("agg")
    IMAGES.mkdir(parents=True, exist_ok=True)
    overview()
    front_view()
    ten_minutes()
