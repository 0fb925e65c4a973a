"""Static picture of an explorer for a notebook whose cells have not run."""

import numpy as np
import PIL.Image
import PIL.ImageDraw
from jaxtyping import Float

from seg4diff_tools.images import encode
from seg4diff_tools.plotting.static import label_overlay, overlay

SIDE, LINE = 320, 26
HINT = "Run this cell to choose layer, step and word."


def preview(picture: PIL.Image.Image | None, maps: Float[np.ndarray, "*class y x"], opacity: float) -> bytes:
    """Draw a map over its picture, or the class of the highest map at each position, with a line of instructions.

    Without a picture, maps stand alone; `opacity` of the colors is 0 to 1. Returns a PNG file.
    """
    ground = PIL.Image.new("RGB", maps.shape[:-3:-1]) if picture is None else picture
    scale = SIDE / max(ground.size)
    ground = ground.resize((max(1, round(ground.width * scale)), max(1, round(ground.height * scale))))
    opacity = 1.0 if picture is None else opacity
    known = np.nan_to_num(maps, posinf=0.0, neginf=0.0)
    if maps.ndim == 2:
        drawn = overlay(ground, known, opacity=opacity)
    elif not len(known):
        drawn = np.asarray(ground.convert("RGB"))
    else:
        enlarged = [np.asarray(PIL.Image.fromarray(one).resize(ground.size)) for one in known.astype(np.float32)]
        drawn = label_overlay(ground, np.argmax(enlarged, 0), opacity)
    sheet = PIL.Image.new("RGB", (ground.width, ground.height + LINE), "white")
    sheet.paste(PIL.Image.fromarray(drawn))
    PIL.ImageDraw.Draw(sheet).text((2, ground.height + 6), HINT, "black", font_size=13)
    return encode(sheet.quantize(128), optimize=True)
