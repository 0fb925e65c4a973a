"""What chapters state in Markdown follows from what their cells printed: answers, conclusions, and remarks on the way.

Sentences that a cell prints follow from its tables by themselves. A claim here holds a sentence that stands in
Markdown: the numbers that it may quote, read from outputs, and the rule that makes it true. Where a chapter comes out
otherwise, the claim fails: change the sentence, not the rule.
"""

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from chapter_outputs import (
    CHAPTERS,
    EXPERT,
    SHARE,
    SIGNED,
    SPAN,
    cells,
    drawn,
    markdown,
    mask_losses,
    said,
    says,
    unproved,
)
from PIL import Image
from user_files import ROOT

from seg4diff_tools import paper
from seg4diff_tools.magnet import PRESETS

MODELS = ROOT / "seg4diff_tools" / "models"
VALUE = r"(-?[\d.]+)"
CLIPSCORES = r"([\d.]+) with the own caption,\s+[\d.]+ with another picture's\. Real scenes: ([\d.]+)"
LEVEL = "cannot be told apart: the difference is"
QUARTERS = rf"Grouping by pads and four quarters cannot be told apart: .*? {SPAN}"


@dataclass(frozen=True)
class Claim:
    """A statement in Markdown.

    Attributes:
        chapter: its number.
        key: words of it, which stand in one paragraph of the chapter.
        numbers: that it rests on, from outputs; those that it quotes are among them.
        holds: what has to be true of them.
    """

    chapter: str
    key: str
    numbers: Callable[[], Sequence[float]]
    holds: Callable[..., bool]


def card(model: str, pattern: str) -> tuple[float, ...]:
    """Numbers of a model card."""
    match = re.search(pattern, (MODELS / model / "README.md").read_text("utf-8"))
    assert match, f"the card of {model} says no {pattern!r}"
    return tuple(float(group) for group in match.groups())


def magnet_gains(table: int, masks: str) -> np.ndarray:
    """What MAGNET adds to SD3 in a table of the paper, in points, for each data set."""
    rows = paper.table(table).query("backbone == 'SD3'").set_index(["model", "trained_on"]).select_dtypes("number")
    return 100 * (rows.loc[("Seg4Diff + MAGNET", masks)] - rows.loc[("Seg4Diff", "")]).dropna().to_numpy()


def starts() -> tuple[float, float]:
    """Lowest and highest score of SD3 before fine-tuning, in percent."""
    plain = paper.table(1).query("backbone == 'SD3' and model == 'Seg4Diff' and trained_on == ''")
    scores = 100 * plain.select_dtypes("number").to_numpy()
    return np.nanmin(scores), np.nanmax(scores)


def short_runs() -> list[tuple[float, ...]]:
    """Gain, deviation and gain of the control for each question of chapter 9."""
    questions = ("classes present", "whole vocabulary", "held-out style", "pads, no words")
    return [said("09", rf"{name}: {SIGNED} ± ([\d.]+) points with masks, {SIGNED} without") for name in questions]


def kinds_that_gain() -> tuple[int, int]:
    """How many kinds of compositional prompts gain by masks of COCO and of SA-1B, in the paper's table 4."""
    rows = paper.table(4).set_index("trained_on").select_dtypes("number")
    return int((rows.loc["COCO"] > rows.loc[""]).sum()), int((rows.loc["SA-1B"] > rows.loc[""]).sum())


def clipscore_gains() -> tuple[float, ...]:
    """Mean CLIPScore of SD3 in the paper's table 3, times 100, and what MAGNET adds to it."""
    mean = 100 * paper.table(3).set_index("trained_on")["mean"]
    return mean[""], *(mean.drop("") - mean[""])


def overview() -> pd.Series:
    """Object mIoU of each loss of chapter 11 with the classes present, in percent."""
    study = pd.read_csv(MODELS / "mini-magnet" / "study.csv")
    own = study[(study["set"] == "test") & (study["layer"] == EXPERT) & study["trained_steps"].isin([0, 150])]
    return 100 * own[own["normalize"] == "softmax"].groupby("variant")["object_mIoU"].mean()


def correlation(chapter: str) -> tuple[float, ...]:
    """A rank correlation over layers, and its interval."""
    return said(chapter, rf"rank correlation (?:over \d+ layers is|of) {VALUE} \(95 % interval {VALUE} to {VALUE}")


def prompts_that_choose() -> int:
    """How many prompts chose a strength in chapter 16."""
    stored = pd.read_csv(MODELS / "mini" / "placing.csv")
    return stored[stored.prompts == "choosing"].prompt.nunique()


def features() -> tuple[float, ...]:
    """In how many layers the class explains more of the queries than the place."""
    shares = [drawn("04", "explains the query features", name) for name in ("the true class", "the place")]
    return (shares[0] > shares[1]).sum(), len(shares[0])


def stretches(inked: np.ndarray) -> list[slice]:
    """Where a picture stands, along one side of a figure: long stretches that are not white."""
    ends = np.flatnonzero(np.diff(inked.astype(int), prepend=0, append=0)).reshape(-1, 2)
    return [slice(start, stop) for start, stop in ends if stop - start > 50]


def panels_of(chapter: str, words: str) -> np.ndarray:
    """The pictures of the figure that the cell with these words draws, [row column y x color], in levels of 255."""
    (cell,) = [one for one in cells(chapter) if words in "".join(one["source"])]
    (shown,) = [output["data"]["image/png"] for output in cell["outputs"]]
    figure = np.asarray(Image.open(io.BytesIO(base64.b64decode("".join(shown)))).convert("RGB"), dtype=float)
    inked = (figure < 250).any(axis=2)
    rows, columns = (stretches(inked.mean(axis=axis) > 0.5) for axis in (1, 0))
    panels = [[figure[row, column] for column in columns] for row in rows]
    height, width = np.min([one.shape[:2] for line in panels for one in line], axis=0)
    return np.array([[one[:height, :width] for one in line] for line in panels])


def changes_of_edits() -> np.ndarray:
    """How far chapter 5's pictures with edited words are from those as written, [edit picture], in levels of 255."""
    written, *edited = panels_of("05", "car and bus swapped")
    return np.array([abs(row - written).mean(axis=(1, 2, 3)) for row in edited])


def changes_by_closing() -> np.ndarray:
    """How far chapter 17's pictures with closed keys are from those with all keys, [picture closed]."""
    panels = panels_of("17", "{closed} closed")
    return abs(panels[:, 1:] - panels[:, :1]).mean(axis=(2, 3, 4))


def losers_of_blur() -> tuple[int, int]:
    """The layers whose blur costs most by CLIPScore and by CLIP-I, on average over prompts."""
    table = pd.read_csv(MODELS / "mini" / "edits.csv")
    means = table[table["edit"] == "blur"].dropna(subset="layer").groupby("layer")[["CLIP-T", "CLIP-I"]].mean()
    return int(means["CLIP-T"].idxmin()), int(means["CLIP-I"].idxmin())


def spreads_of_edits() -> tuple[float, float]:
    """Deviation of CLIPScore over prompts, untouched, and the range of its means over blurred layers."""
    table = pd.read_csv(MODELS / "mini" / "edits.csv")
    blurred = table[table["edit"] == "blur"]
    means = blurred.dropna(subset="layer").groupby("layer")["CLIP-T"].mean()
    return blurred.loc[blurred["layer"].isna(), "CLIP-T"].std(), np.ptp(means)


CLAIMS = [
    Claim(
        "01",
        "Not every layer does it",
        lambda: (*said("02", rf"it has an mIoU of {SHARE}"), *said("02", rf"The worst layer has {SHARE}")),
        lambda best, worst: 2 * worst < best,
    ),
    Claim(
        "03",
        "an even share is much larger",
        lambda: (*said("03", rf"of their attention; even shares would be {SHARE}"), 50, 4096, 154, 4),
        lambda even, prompts, images, texts, share: (
            even > 10 * share and round(100 * texts / (texts + images)) == share
        ),
    ),
    Claim(
        "05",
        "Differences between layers are small beside",
        spreads_of_edits,
        lambda prompts, layers: layers < prompts / 2,
    ),
    Claim(
        "05",
        "the swap changes less, pixel by pixel",
        lambda: changes_of_edits().ravel(),
        lambda *changes: len(changes) == 6 and all(np.array(changes[:3]) < changes[3:]),
    ),
    Claim(
        "06",
        "their maps differ faintly",
        lambda: said("06", rf"and ([\de.-]+) in layer {EXPERT}\. The largest divergence .*? can have is ([\d.]+)"),
        lambda apart, largest: apart < largest / 1000,
    ),
    Claim(
        "11",
        "vanishes at a logit of 1",
        lambda: drawn("11", "Focal loss of a place inside the mask", "released"),
        lambda *loss: (
            (np.argmin(loss[:70]), loss[56]) == (56, 0) and loss[0] > loss[48] > loss[52] > 0 < loss[60] < loss[64]
        ),
    ),
    Claim(
        "11",
        "So the loss has much to do",
        lambda: said("11", rf"{SHARE} of the scores of class words .*? cover {SHARE} of them"),
        lambda above, inside: above > inside + 10,
    ),
    Claim(
        "13",
        "readings by similarity are no better",
        lambda: (),
        lambda: not says("13", "Better than the first row: [^.]*(concept|cosine)"),
    ),
    Claim(
        "13",
        "stop words change next to nothing",
        lambda: (
            *said("13", rf"one layer \(7\), stop words is better than one layer \(7\) by {VALUE} points \({VALUE} to"),
            *said("13", rf"DAAM, stop words and DAAM {LEVEL} {SIGNED} points {SPAN}"),
            *said("13", rf"concept and concept, in the prompt {LEVEL} {SIGNED} points {SPAN}"),
        ),
        lambda gain, least, other, low, high, apart, lower, upper: (
            0 <= least <= gain < 0.5 and low <= 0 < high < 0.5 and lower < 0 < upper
        ),
    ),
    Claim(
        "01",
        "yes: by its attention",
        lambda: said("01", rf"{SHARE} of the pixels have the right name\..*? frequent name would give {SHARE}"),
        lambda right, most: right > most + 5,
    ),
    Claim("01", "Of the prompts that it was trained with", lambda: card("mini", r"(\d+)% class names alone"), bool),
    Claim(
        "01",
        "of simple prompts",
        lambda: said("10", rf"{SHARE} as trained, {SHARE} aligned")[:1],
        lambda right: right < 50,
    ),
    Claim(
        "02",
        "layer 4, chosen on other scenes",
        lambda: (
            *said("02", rf"training scenes choose layer (\d+) .*? it has an mIoU of {SHARE}"),
            *said("02", r"So layer (\d+) and layer (\d+) cannot be told from it"),
            *said("02", rf"to {SHARE} with all (\d+) names"),
            *said("02", rf"the mean beats its best head, {SIGNED} {SPAN}"),
            *said("02", r"The paper's (\d+) of (\d+) is"),
        ),
        lambda layer, score, one, other, full, names, head, low, high, *steps: (
            layer == EXPERT and high < 0 and says("02", r"cannot be told from 8\.")
        ),
    ),
    Claim(
        "03",
        "an image token gives text",
        lambda: (
            *said("03", rf"give text {SHARE} \(layer \d+\) to {SHARE} .*? even shares would be {SHARE}"),
            *said("03", rf"In sum the pads get more than the words: {SHARE} against {SHARE}"),
            *(8, 28, 12),
        ),
        lambda low, high, even, pads, words, *_: high < even and pads > words,
    ),
    Claim(
        "03",
        "Whether layers that attend to words",
        lambda: (12, *correlation("03")),
        lambda layers, value, low, high: low < 0 < high,
    ),
    Claim(
        "03",
        "it hardly changes from one set",
        lambda: said("03", r"differs by more than ([\d.]+) points"),
        lambda gap: gap < 5,
    ),
    Claim(
        "03",
        "it cannot be told whether those",
        lambda: (12, *correlation("03")),
        lambda layers, value, low, high: low < 0 < high,
    ),
    Claim(
        "04",
        "it depends on the layer",
        lambda: (*features(), *correlation("04")),
        lambda sides, layers, value, low, high: 0 < sides < layers and low < 0 < high,
    ),
    Claim(
        "05",
        "no single layer is needed much",
        lambda: (
            drawn("05", "likeness", "CLIP-I").min(),
            drawn("05", "likeness", "CLIP-I").argmin(),
            *said("05", rf"\| CLIP-I \| layer {EXPERT}: [^|]*\| layer (\d+): "),
        ),
        lambda kept, first, second: kept > 0.9 and says("05", r"\| CLIP-I \|[^\n]*?\| no \|"),
    ),
    Claim(
        "05",
        "Guidance away from its blur gains",
        lambda: (
            said("05", rf"Alone, guidance by layer {EXPERT} changes .*? by {SIGNED} at .*?: {SIGNED} to {SIGNED}\)")
            + said("05", rf"guidance adds to it {SIGNED} at .*?: {SIGNED} to {SIGNED}\) by layer {EXPERT}")
        ),
        lambda alone, low, high, added, lowest, highest: low > 0 > lowest,
    ),
    Claim(
        "05",
        "one layer's blur is hardly to be seen",
        lambda: (drawn("05", "likeness", "CLIP-I").min(),),
        lambda kept: kept > 0.95,
    ),
    Claim("05", "the judge gives pictures", lambda: card("mini", CLIPSCORES), lambda made, real: made > real),
    Claim(
        "06",
        "hardly. Groups made",
        lambda: (
            *said("06", r"Pads reach ([\d.]+)% mIoU"),
            *said("06", QUARTERS + rf"; four quarters: {SHARE}"),
            *said("06", rf"Grouping by pads is worse than k-means, 3 groups .*?: {SHARE}"),
        ),
        lambda pads, low, high, quarters, kmeans: low < 0 < high,
    ),
    Claim(
        "06",
        "groups made of it are not surely better",
        lambda: (
            *said("06", QUARTERS),
            *said("06", r"threshold ([\de.-]+), chosen on training"),
            *said("06", r"At the threshold ([\d.]+) mIoU is [\d.]+%"),
            *said("06", r"At the threshold [\d.]+ mIoU is ([\d.]+)%"),
            *said("06", r"one group: ([\d.]+)%\."),
        ),
        lambda low, high, chosen, released, score, one: low < 0 < high and chosen < released / 1000 and score == one,
    ),
    Claim("06", "The layer does hold", lambda: (), lambda: says("06", "Grouping by pads is worse than k-means")),
    Claim(
        "07",
        "by halves of a thing, a crude measure",
        lambda: (
            *said("07", rf"heads of layer {EXPERT} are ([\d.]+) from no preference on average, their mean ([\d.]+)"),
            *said("07", r"by left and right ([\d.]+) and ([\d.]+):"),
            *said("07", rf"Chosen heads is better than the mean of layer {EXPERT} by {VALUE} points"),
            *said("07", rf"The mean of all layers is better than the mean of layer {EXPERT} by {VALUE} points"),
        ),
        lambda upper, mean, left, of_mean, *gains: upper < mean + 0.05 and left < of_mean + 0.05,
    ),
    Claim(
        "08",
        "half of the way to the later label map",
        lambda: (
            *said("08", r"full agreement is made with (\d+) of (\d+) steps left"),
            *said("08", r"better in (\d+) of (\d+) pairs"),
        ),
        lambda left, steps, better, pairs: left > steps / 2 and better > 0.8 * pairs,
    ),
    Claim(
        "08",
        "most of the layout is there",
        lambda: said("08", r"From (\d+) to \d+ steps left at least"),
        lambda first: first >= 14,
    ),
    Claim(
        "09",
        "So few steps move the scores little",
        lambda: np.ptp(drawn("09", "24 unseen scenes", "object_mIoU"), keepdims=True),
        lambda change: change < 3,
    ),
    Claim(
        "09",
        "it does, from",
        lambda: (
            *said("09", rf"goes from {SHARE} to {SHARE} object mIoU"),
            *said("09", rf"The other layers move by {SIGNED} points"),
            *(value for run in short_runs() for value in run),
        ),
        lambda before, after, others, *runs: (
            after - before > 5 and abs(others) < 1 and runs[3] > 2 * runs[4] and runs[6] > 2 * runs[7] > 0 > runs[9]
        ),
    ),
    Claim(
        "09",
        "A few minutes of masks",
        lambda: [value for run in short_runs()[:3] for value in run],
        lambda *runs: all(gain > 5 * spread for gain, spread in zip(runs[::3], runs[1::3], strict=True)),
    ),
    Claim("09", "The control says", lambda: [run[2] for run in short_runs()], lambda *runs: max(map(abs, runs)) < 1),
    Claim(
        "09",
        "It has a price, which",
        lambda: said("10", rf"over prompts {VALUE} to {VALUE}\)"),
        lambda low, high: high < 0,
    ),
    Claim(
        "09",
        "It stays where it was asked for",
        lambda: (
            *said("09", rf"The other layers move by {SIGNED} points"),
            *short_runs()[3],
            *(
                end
                for masks in ("COCO", "SA-1B")
                for end in (magnet_gains(2, masks).min(), magnet_gains(2, masks).max())
            ),
        ),
        lambda others, pads, spread, control, coco, best, sa1b, top: (
            abs(others) < 1 and pads < spread and coco > sa1b and best > top
        ),
    ),
    Claim(
        "09",
        "The paper's gains are smaller",
        lambda: (
            *said("09", rf"by 600 steps on scenes: {SIGNED} with words"),
            magnet_gains(1, "COCO").max(),
            *starts(),
            PRESETS["mini"].learning_rate / PRESETS["coco"].learning_rate,
        ),
        lambda ours, theirs, low, high, ratio: ours > theirs and round(ratio) == 100,
    ),
    Claim(
        "10",
        "no: CLIPScore falls",
        lambda: (
            *said("10", r"\(-([\d.]+)% of itself, more than chance gives\)"),
            *said("10", rf"{SHARE} as trained, {SHARE} aligned"),
        ),
        lambda falls, before, after: after < before,
    ),
    Claim(
        "10",
        "Tables 3 and 4 of the paper say",
        lambda: (*clipscore_gains(), *kinds_that_gain(), 3, 4),
        lambda level, one, other, coco, sa1b, *_: (
            round(level) == 27 and 0.05 < min(one, other) <= max(one, other) < 0.15 and (coco, sa1b) == (5, 2)
        ),
    ),
    Claim("10", "has a limit of its own", lambda: card("mini", CLIPSCORES), lambda made, real: made > real),
    Claim(
        "11",
        "the loss of the text costs",
        lambda: (150, *(mask_losses()[name] for name in ("softmax", "released", "shares"))),
        lambda steps, text, code, ours: text < 0 < code < ours,
    ),
    Claim(
        "11",
        "The convolutions that the paper does not mention",
        lambda: (mask_losses()["scores"], mask_losses()["conv"]),
        lambda plain, conv: plain < 0 < conv,
    ),
    Claim(
        "11",
        "The loss as the paper's text has it",
        lambda: [mask_losses()[name] for name in ("softmax", "released", "shares")],
        lambda text, code, ours: text < 0 < code and ours > 2 * code,
    ),
    Claim(
        "11",
        "The released focal loss makes things worse",
        lambda: (
            *said("11", rf"released focal loss against the published one: {SIGNED}"),
            overview()["scores, released code"] - overview()["scores, conv head"],
            *(0, 1),
        ),
        lambda alone, behind, *_: alone < behind < 0,
    ),
    Claim(
        "11",
        "What is read should be trained",
        lambda: (),
        lambda: overview().drop("shares, captions").idxmax() == "shares",
    ),
    Claim(
        "11",
        "This does not say what",
        lambda: (
            3000,
            magnet_gains(1, "COCO").min(),
            magnet_gains(1, "COCO").max(),
            PRESETS["mini"].learning_rate / PRESETS["coco"].learning_rate,
        ),
        lambda steps, low, high, ratio: PRESETS["coco"].steps == steps and round(ratio) == 100,
    ),
    Claim(
        "12",
        "yes: a second implementation",
        lambda: (
            *said("12", r"label maps in (\d+) pixels"),
            *said("12", rf"Who may win a pixel is worth {SIGNED} points"),
            *said("12", rf"Matching every row anew is worth {SIGNED} points"),
            *said("12", r"precision change the mIoU by at most ([\d.]+) points"),
        ),
        lambda pixels, classes, names, others: pixels == 0 and min(-classes, names) > 5 * others,
    ),
    Claim(
        "12",
        "The package computes what the paper defines",
        lambda: said("12", r"label maps in (\d+) pixels"),
        lambda pixels: pixels == 0,
    ),
    Claim(
        "12",
        "Of the choices inside the forward",
        lambda: (
            *said("12", rf"Who may win a pixel is worth {SIGNED} points"),
            *said("12", rf"Matching every row anew is worth {SIGNED} points"),
            *said("12", r"precision change the mIoU by at most ([\d.]+) points"),
        ),
        lambda classes, names, others: others < 1 and min(-classes, names) > 5 * others,
    ),
    Claim(
        "13",
        "averaging over all layers does",
        lambda: (
            *said("13", rf"The first (\d+) scenes choose a reading, .*? by {VALUE} points \({VALUE} to"),
            *said("13", rf"as multiples of the first row: DAAM {VALUE}, GoCA {VALUE}"),
        ),
        lambda scenes, gain, low, daam, goca: (
            low > 0
            and min(daam, goca) > 1
            and says("13", "Better than the first row: [^.]*DAAM")
            and says("13", "Better than the first row: [^.]*GoCA")
            and not says("13", "Better than the first row: [^.]*(concept|cosine)")
        ),
    ),
    Claim(
        "14",
        "told which classes are there it scores",
        lambda: (
            *said("14", rf"mini scores {SHARE}; choosing among all (\d+), {SHARE}"),
            *said("14", rf"Best under present: [^%]*?, {SHARE}"),
            *said("14", rf"under full: [^%]*?, {SHARE}"),
            *said("14", rf"with nothing to choose, by {SIGNED} points {SPAN} for {VALUE} times"),
            *said("14", rf"Guided upsampling changes mIoU by {SIGNED} points {SPAN} for {VALUE} times"),
        ),
        lambda present, names, full, best, best_full, gain, low, high, more, guided, lowest, highest, longer: (
            best > present and best_full > full and min(low, lowest) > 0 and 1.5 < more < 4 and longer < 1.5
        ),
    ),
    Claim(
        "14",
        "Memory stays nearly level",
        lambda: (
            *said("14", rf"Memory goes from {VALUE} MiB .*? to {VALUE} MiB"),
            *said("14", rf"from {VALUE} to {VALUE} seconds"),
            2000,
            100,
        ),
        lambda before, after, early, late, *_: after < 1.1 * before and late < 1.25 * early,
    ),
    Claim(
        "14",
        "A score says nothing without its protocol",
        lambda: (
            *said("14", r"The difference of (\d+) points is the price"),
            *said("14", rf"Best under present: .*?%, {SIGNED} points"),
            *said("14", rf"under full: .*?%, {SIGNED} points"),
        ),
        lambda oracle, present, full: oracle > max(present, full),
    ),
    Claim(
        "14",
        "Averaging all layers and following the edges of the image need",
        lambda: (
            *said("14", rf"with nothing to choose, by {SIGNED} points {SPAN} for {VALUE} times"),
            *said("14", rf"Guided upsampling changes mIoU by {SIGNED} points {SPAN} for {VALUE} times"),
            *said("14", rf"tiles by {SIGNED} points {SPAN} for {VALUE} times"),
        ),
        lambda layers, a, b, one, edges, c, d, two, tiles, e, f, three: (
            min(layers, edges) > tiles and three > 2 * max(one, two)
        ),
    ),
    Claim(
        "14",
        "Words matter as much as any of it",
        lambda: (
            *said("14", rf"the annotated word scores {SHARE}, the everyday word {SHARE}"),
            *said("14", rf"The word itself scores {SHARE}, words for what is there {SHARE}"),
            *said("14", rf"Best under present: .*?%, {SIGNED} points"),
        ),
        lambda rare, word, background, words, best: min(word - rare, words - background) > best,
    ),
    Claim(
        "15",
        "what one sees depends on where one looks",
        lambda: (
            *said("15", rf"Layer (\d+): {SHARE} of the pixels"),
            *said("15", rf"the worst, layer (\d+), {SHARE}"),
        ),
        lambda best, most, worst, least: most > 2 * least,
    ),
    Claim(
        "16",
        "words outside the prompt segment",
        lambda: (
            *said("16", rf"outside of it {SHARE} by `i2c`: {SIGNED} points {SPAN}"),
            *said("16", r"differ by ([\d.]+e[+-]\d+) at most"),
            *said(
                "16",
                rf"Of (\d+) pictures {SHARE} are right without, {SHARE} with words kept in place: {SIGNED} points "
                rf"{SPAN}",
            ),
            *said("16", rf"the layout locked: {SIGNED} points {SPAN}"),
            *said("16", rf"Placed, by kind: .*?counting {SIGNED} points {SPAN}"),
            *said("16", rf"Placed, by kind: .*?relation {SIGNED} points {SPAN}"),
            *said("16", rf"Placed, by kind: .*?color binding {SIGNED} points {SPAN}"),
            *said("16", rf"pictures {SHARE} are right with second prompts, {SHARE} without: {SIGNED} points {SPAN}"),
        ),
        lambda score, gap, low, high, difference, count, without, placed, gain, gain_low, *others: (
            low < 0 < high
            and difference < 1e-4
            and gain_low > 0
            and others[2] < 0 < others[3]
            and min(others[5], others[8]) > 0
            and others[10] == 0
            and others[16] > 0
        ),
    ),
    Claim(
        "16",
        "the strength is the better of 0 and 1",
        lambda: (
            *said("16", rf"strength of second prompts: {SHARE} right with 0, {SHARE} right with 1"),
            *said(
                "16",
                rf"lies in the left half when it is whole, and {SHARE} when it is kept there: {SIGNED} points {SPAN}",
            ),
            prompts_that_choose(),
            0,
            1,
        ),
        lambda none, one, kept, gain, low, high, prompts, *strengths: one > none and low > 0 and prompts == 24,
    ),
    Claim(
        "16",
        "The mean of its map over the picture does to some extent",
        lambda: said("16", rf"In {SHARE} of pairs \(95 %: {SHARE} to {SHARE}\)"),
        lambda share, low, high: low > 50 and high < 100,
    ),
    Claim(
        "16",
        "The strength is the best of three",
        lambda: said("16", rf"strength 1 {SHARE} right, strength 2 {SHARE} right, strength 4 {SHARE} right"),
        lambda one, two, four: two > max(one, four),
    ),
    Claim(
        "17",
        "no single one stands out",
        lambda: (
            *said("17", rf"Image queries give pads {SHARE} .*? \(even shares: {SHARE}"),
            *said("17", rf"token of the kind word, {VALUE} times an even share"),
            drawn("17", "the largest single token of each kind", "pad").max(),
            drawn("17", "the largest single token of each kind", "start").max(),
            *said("17", rf"pads closed: features .*?, CLIPScore changes by [+-][\d.]+ {SPAN}"),
            *said("17", rf"top key closed: features .*?, CLIPScore changes by [+-][\d.]+ {SPAN}"),
            *said("17", rf"start closed: features keep a cosine of {VALUE}, CLIPScore changes by [+-][\d.]+ {SPAN}"),
            *said("17", rf"The top key, which is closed, is of the kind word in {SHARE}"),
        ),
        lambda pads, even, word, largest, start, low, high, lower, upper, same, less, more, kind: (
            0.4 < pads / even < 0.6
            and largest < 1
            and min(word, start) > 10
            and low < 0 < high
            and upper < 0
            and same > 0.999
            and max(abs(less), abs(more)) < 0.02
            and kind > 50
            and says("17", "pads closed and one layer cannot be told apart")
        ),
    ),
    Claim(
        "18",
        "few heads carry much of a word",
        lambda: (
            *said("18", r"(\d+) of (\d+) heads carry more than nothing"),
            *said("18", r"(\d+) of \d+ heads hold half of what all carry"),
            *said("18", rf"Most carries head (\d+) of layer (\d+), {SHARE} \({SHARE} to"),
            *said("18", rf"relation: head (\d+) of layer (\d+), {SHARE} \({SHARE} to"),
        ),
        lambda some, heads, half, head, layer, share, low, other, early, relation, least: (
            some < heads / 2 and half < heads / 4 and min(low, least) > 0 and (head, layer) != (other, early)
        ),
    ),
    Claim(
        "18",
        "of pictures right for the other prompt",
        lambda: (
            *said("18", rf"with the (\d+) that carry most {SHARE}, with \d+ others {SHARE}\."),
            *said(
                "18",
                rf"Against no head, the .*? gain {SIGNED} points {SPAN}, \d+ others {SIGNED} points {SPAN}",
            ),
            *said("18", rf"carry most against \d+ others, {SIGNED} points {SPAN}"),
        ),
        lambda size, best, others, gain, low, high, gained, lower, higher, apart, least, most: (
            min(low, lower) > 0 and least < 0 < most
        ),
    ),
    Claim(
        "18",
        "No single head is surely missed",
        lambda: (
            *said("18", r"A lower CLIPScore holds for (\d+) of \d+ heads \((\d+) prompts"),
            *said(
                "18", rf"what it carries: a rank correlation over \d+ heads of {SIGNED} \(95 %: {SIGNED} to {SIGNED}\)"
            ),
        ),
        lambda missed, prompts, value, low, high: missed == 0 and low < 0 < high,
    ),
    Claim(
        "02",
        "although two more cannot be told from it",
        lambda: said("02", r"So layer (\d+) and layer (\d+) cannot be told from it"),
        lambda *others: len(others) == 2,
    ),
    Claim(
        "02",
        "reads best with about 8 steps left",
        lambda: (EXPERT, 9, *said("02", r"The paper's (\d+) of \d+ is ([\d.]+) points behind it")),
        lambda layer, other, step, behind: behind < 1 and says("02", r"cannot be told from 8\."),
    ),
    Claim(
        "05",
        "pictures change most where layer 4 is blurred",
        lambda: (EXPERT, losers_of_blur()[1]),
        lambda a, b: a == b,
    ),
    Claim(
        "05",
        "more than that of any other layer",
        lambda: (EXPERT, losers_of_blur()[0], 50, 3),
        lambda layer, most, *_: layer == most,
    ),
    Claim(
        "08",
        "I2T is not better everywhere",
        lambda: said("08", r"better in (\d+) of (\d+) pairs"),
        lambda better, pairs: better < pairs,
    ),
    Claim(
        "12",
        "makes one group of all pads",
        lambda: (3, 8, *said("12", r"All of the text's choices together give [\d.]+%, with ([\d.]+) groups")),
        lambda low, high, groups: groups == 1,
    ),
    Claim(
        "14",
        "because they take most of the time",
        lambda: said("14", rf"tiles by {SIGNED} points {SPAN} for {VALUE} times")[3:],
        lambda longer: longer > 5,
    ),
    Claim(
        "17",
        "Without the top key all three change plainly",
        lambda: (102, *changes_by_closing().ravel()),
        lambda _, *changes: all(row[3] > 3 * max(row[:3]) and row[3] > 10 for row in np.array(changes).reshape(3, 5)),
    ),
]

FREE = (
    # about the method, the tools or the paper: nothing that a run can change
    "One forward pass holds a map", "Four plain steps turn", "The prompt here named", "What differs from the paper",
    "The four shares of a layer follow", "Grouping without words needs maps", "What is left over counts as wrong",
    "The released code groups otherwise", "Agreement is with the", "Left out here", "The paper says that Table 2",
    "mini is small, its scenes", "One recording answers", "Any recording can be explored", "view.save_html",
    "Published numbers are not comparable",
)  # fmt: skip


def paragraphs(chapter: str) -> list[str]:
    """Paragraphs and items of a chapter's Markdown, each on one line and without stars; no code, no tables."""
    found = []
    for text in markdown(chapter):
        text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        parts = re.split(r"\n\s*\n|\n(?=- )", text)
        found += [" ".join(part.replace("*", "").split()) for part in parts if part.strip() and part.strip()[0] != "|"]
    return found


def answer(chapter: str) -> str:
    """The answer below a chapter's question."""
    (found,) = [part for part in paragraphs(chapter) if part.startswith("Answer")]
    return found


def conclusions(chapter: str) -> list[str]:
    """What stands in Markdown below "What it means"."""
    texts, found = markdown(chapter), []
    for text in texts:
        if "## What it means" in text:
            found += [
                p for p in paragraphs(chapter) if p in " ".join(text.partition("it means")[2].replace("*", "").split())
            ]
    return [part for part in found if not part.startswith("#")]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.chapter}: {claim.key}")
def test_statements_follow_from_what_was_printed(claim):
    (paragraph,) = [part for part in paragraphs(claim.chapter) if claim.key in part]
    numbers = claim.numbers()
    assert claim.holds(*numbers), f"chapter {claim.chapter}: {paragraph!r} does not follow from {numbers}"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_begins_with_its_question_and_its_answer(chapter):
    first = paragraphs(chapter)
    assert first[0].startswith("# ") and first[1].startswith("Question") and first[2] == answer(chapter)
    claims = [claim for claim in CLAIMS if claim.chapter == chapter and claim.key in answer(chapter)]
    assert claims, f"no claim holds the answer of chapter {chapter}"
    assert unproved(answer(chapter), [number for claim in claims for number in claim.numbers()]) == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_conclusion_is_a_claim_or_states_no_result(chapter):
    for part in conclusions(chapter):
        claims = [claim for claim in CLAIMS if claim.chapter == chapter and claim.key in part]
        assert claims or any(free in part.removeprefix("- ") for free in FREE), f"chapter {chapter}: {part}"
        assert not claims or unproved(part, [number for claim in claims for number in claim.numbers()]) == []
