"""What executed chapters print, draw and say: the numbers that claims are held to."""

import base64
import functools
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from user_files import ROOT

from seg4diff_tools.backbones.checkpoints import MINI, read_card

PLOTLY = "application/vnd.plotly.v1+json"
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
SHARE = r"([\d.]+)%"
SIGNED = r"([+-][\d.]+)"
SPAN = rf"\({SIGNED} to {SIGNED}\)"
EXPERT = int(read_card(MINI)["expert_layer"])
"""The embedded model's expert layer."""
CHAPTERS = sorted(path.name[:2] for path in (ROOT / "notebooks").glob("*.ipynb"))


@functools.cache
def cells(chapter: str) -> list[dict[str, Any]]:
    """The cells of a chapter."""
    (path,) = (ROOT / "notebooks").glob(f"{chapter}_*.ipynb")
    return json.loads(path.read_text("utf-8"))["cells"]


def outputs(chapter: str) -> list[dict[str, Any]]:
    """Everything that the cells of a chapter show."""
    return [output["data"] for cell in cells(chapter) for output in cell.get("outputs", []) if "data" in output]


def markdown(chapter: str) -> list[str]:
    """The Markdown cells of a chapter."""
    return ["".join(cell["source"]) for cell in cells(chapter) if cell["cell_type"] == "markdown"]


@functools.cache
def printed(chapter: str) -> str:
    """The sentences that a chapter's cells print, on one line and without stars."""
    text = " ".join("".join(data["text/markdown"]) for data in outputs(chapter) if "text/markdown" in data)
    return " ".join(text.replace("*", "").split())


def said(chapter: str, pattern: str) -> tuple[float, ...]:
    """Numbers of the one sentence of a chapter that a pattern finds."""
    found = {groups for match in re.finditer(pattern, printed(chapter)) if (groups := match.groups())}
    assert len(found) == 1, f"chapter {chapter} says {pattern!r} {len(found)} times: name the sentence as it is now"
    return tuple(float(group) for group in found.pop())


def says(chapter: str, pattern: str) -> bool:
    """Whether a chapter's outputs hold a sentence."""
    return re.search(pattern, printed(chapter)) is not None


def drawn(chapter: str, title: str, name: str) -> np.ndarray:
    """The values of one curve, or of one row of bars, of the figure whose title holds these words."""
    figures = [data[PLOTLY] for data in outputs(chapter) if PLOTLY in data]
    (figure,) = [one for one in figures if title in one["layout"].get("title", {}).get("text", "")]
    (values,) = [trace["y"] for trace in figure["data"] if trace.get("name") == name]
    return unpacked(values)


def unpacked(values: dict[str, str]) -> np.ndarray:
    """An array as plotly stores it."""
    array = np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])
    return array.reshape([int(size) for size in values["shape"].split(",")]) if "shape" in values else array


def unproved(sentence: str, numbers: Sequence[float]) -> list[str]:
    """The numbers of a sentence that no output has, whatever their sign; names of figures and models are none."""
    names = r"\{doc\}`[^`]*`|\]\([^)]*\)|\b(?:Table|Fig|Eq)s? \d+\w*|\b95 %|`[^`]*`|\b(?:SD|Stable Diffusion )3(?:\.5)?"
    sentence = re.sub(names, "", sentence)
    return [text for text in NUMBER.findall(sentence) if not any(is_rounded(text, number) for number in numbers)]


def is_rounded(text: str, number: float) -> bool:
    """Whether a text is a number, rounded to as many digits as the text has."""
    digits = len(text.partition(".")[2])
    return abs(float(text.replace(",", "")) - abs(number)) <= 0.5 * 10**-digits + 1e-9


def mask_losses() -> dict[str, float]:
    """What each mask loss of chapter 11 changes, in points of object mIoU."""
    names = ["untrained", "flow", "shares", "captions", "softmax", "scores", "focal", "conv", "released", "heads"]
    values = drawn("11", "what each loss does", "read from attention")
    return {name: round(value - values[0], 1) for name, value in zip(names, values, strict=True)}
