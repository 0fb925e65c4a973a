"""What the front pages say came out follows from what the chapters stored: verdicts and every number beside them.

A claim holds one row or one sentence of a page. Its numbers are read from the sentences and figures of executed
chapters; its rule says what they amount to. Where a chapter comes out otherwise, the claim fails: change the sentence,
not the rule.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from chapter_outputs import (
    EXPERT,
    SHARE,
    SIGNED,
    SPAN,
    drawn,
    mask_losses,
    said,
    says,
    unproved,
)
from user_files import ROOT

PAGES = {name: (ROOT / path).read_text("utf-8") for name, path in
         {"paper": "book/paper.md", "intro": "book/intro.md", "README": "README.md"}.items()}  # fmt: skip
VERDICTS = ("reproduced", "partly", "undecided", "not on this model")


def place(values: np.ndarray, index: int) -> int:
    """1 for the largest."""
    return 1 + int((values > values[index]).sum())


@dataclass(frozen=True)
class Row:
    """A row of paper.md: its verdict by rule, and the numbers that its sentence may quote.

    Attributes:
        numbers: what chapters print, as it is rounded on the page.
        verdict: of these.
    """

    numbers: Callable[[], Sequence[float]]
    verdict: Callable[..., str]


def features_by_layer() -> tuple[float, ...]:
    shares = [drawn("04", "explains the query features", name) for name in ("the true class", "the place")]
    leads = shares[0] > shares[1]
    return leads.sum(), len(leads), leads[EXPERT], (shares[0] - shares[1]).argmax()


def norms_by_layer() -> tuple[float, ...]:
    text = drawn("04", "norm of values", "text")
    return place(text, EXPERT), len(text)


def blur_by_layer() -> tuple[float, ...]:
    alike, fit = drawn("05", "likeness", "CLIP-I"), drawn("05", "blurring a layer does to CLIP-T", "change")
    features = drawn("05", "likeness", "CLIP's patches")
    seventh = said("05", rf"\| CLIP-I \| layer {EXPERT}: [^|]*\| layer (\d+): ")
    return alike.argmin(), fit.argmin(), features.argmin(), alike.min(), *seventh


def sides_of_heads() -> tuple[float, ...]:
    """How far heads of the expert layer, and their mean, are from no preference between upper and lower half."""
    return said("07", rf"heads of layer {EXPERT} are ([\d.]+) from no preference on average, their mean ([\d.]+)")


def depth_of_the_best() -> tuple[float, ...]:
    scores = drawn("02", "mini, 200 scenes", "mIoU")
    return scores.argmax(), len(scores) - 1, says("02", "cannot be told from it"), 0


def normalized() -> tuple[float, ...]:
    softmax, both, scores, _ = drawn("02", "With and without softmax", "mini, our scenes (here)")
    layers, ahead = said("02", r"Of (\d+) layers, raw scores without min-max beat plain softmax in (\d+)")
    (surely,) = said("02", r"more surely than chance gives, for all layers together, in (\d+)")
    return softmax, scores, both, layers, ahead, EXPERT, surely


ROWS = {
    "Fig 3, 29": Row(
        features_by_layer,
        lambda sides, layers, expert, leads: VERDICTS[3 if not expert else 0 if leads == EXPERT and sides < 4 else 1],
    ),
    "Fig 4, 28": Row(norms_by_layer, lambda rank, layers: VERDICTS[0 if rank == 1 else 1 if rank < layers / 2 else 3]),
    "App C": Row(
        lambda: said("04", r"correlation of (-?[\d.]+) \(95 % interval (-?[\d.]+) to (-?[\d.]+)\) over"),
        lambda value, low, high: VERDICTS[0 if low > 0 else 3 if high < 0 else 2],
    ),
    "Fig 5, 31": Row(
        blur_by_layer,
        lambda alike, fit, features, kept, _: VERDICTS[3 if alike != EXPERT else 0 if kept < 0.9 else 1],
    ),
    "Fig 18": Row(blur_by_layer, lambda alike, fit, features, *_: VERDICTS[1 if alike == fit == EXPERT else 3]),
    "Fig 6, 32": Row(
        lambda: (
            said("05", rf"Alone, guidance by layer {EXPERT} changes .*? by {SIGNED} at .*?: {SIGNED} to {SIGNED}\)")
            + said("05", rf"guidance adds to it {SIGNED} at .*?: {SIGNED} to {SIGNED}\) by layer {EXPERT}")
        ),
        lambda gain, low, high, *on_top: VERDICTS[0 if low > 0 else 2],
    ),
    "Fig 7, Eq 9 to 12": Row(
        lambda: said("12", r"label maps in (\d+) pixels"), lambda pixels: VERDICTS[0 if pixels == 0 else 1]
    ),
    "Fig 8": Row(
        depth_of_the_best,
        lambda best, last, ties, _: VERDICTS[3 if abs(best / last - 9 / 23) > 0.1 else 1 if ties else 0],
    ),
    "Fig 15": Row(
        lambda: (*said("02", r"The paper's 8 of 28 is ([\d.]+) points behind it"), 8, 28),
        lambda costs, *_: VERDICTS[0 if costs < 1 else 1],
    ),
    "Fig 17": Row(
        lambda: said(
            "02", rf"In layer (\d+) single heads reach {SHARE} to {SHARE}, and the mean over its heads {SHARE}"
        )
        + said("02", r"best single head is head \d+ of layer (\d+)"),
        lambda expert, low, high, mean, layer: VERDICTS[3 if not 4 <= layer <= 7 else 0 if high > mean else 1],
    ),
    "Fig 16, 25": Row(
        lambda: said("08", r"better in (\d+) of (\d+) pairs"),
        lambda better, pairs: VERDICTS[0 if better > 0.8 * pairs else 1 if 2 * better > pairs else 3],
    ),
    "Table 5": Row(
        normalized,
        lambda softmax, scores, both, layers, ahead, *_: (
            VERDICTS[0 if softmax > max(both, scores) else 1 if softmax > scores or 2 * ahead < layers else 3]
        ),
    ),
    "Fig 9a, 26, 27": Row(
        sides_of_heads,
        lambda head, mean: VERDICTS[1 if head > mean + 0.05 else 2],
    ),
    "Fig 9b, 30": Row(
        lambda: said("06", rf"and ([\de.-]+) in layer {EXPERT}\. The largest divergence .*? can have is ([\d.]+)")
        + said("06", rf"Grouping by pads and four quarters cannot be told apart: .*? {SPAN}"),
        lambda apart, largest, low, _: VERDICTS[3 if low <= 0 else 0 if apart > largest / 100 else 1],
    ),
    "Table 2": Row(
        lambda: said("06", r"Pads reach ([\d.]+)% mIoU")
        + said("06", rf"Grouping by pads and four quarters cannot be told apart: .*? {SPAN}; four quarters: {SHARE}")
        + said("06", r"image-to-image rows: ([\d.]+)%\.")
        + said("06", r"one group: ([\d.]+)%\.")
        + said("06", r"groups: ([\d.]+)%\."),
        lambda pads, low, *_: VERDICTS[0 if low > 0 else 3],
    ),
    "Fig 10, Eq 13, 14": Row(
        lambda: (mask_losses()["softmax"], mask_losses()["released"], mask_losses()["shares"], 150),
        lambda text, code, ours, _: VERDICTS[0 if text > 0 else 1 if max(code, ours) > 0 else 3],
    ),
    "Tables 1, 2": Row(
        lambda: (*(mask_losses()[name] for name in ("shares", "released", "scores", "heads")), 150)
        + said("11", r"and shares differ by up to ([\d.]+)")
        + said("09", rf"pads, no words: {SIGNED} ± ([\d.]+) points with masks"),
        lambda ours, *others: VERDICTS[0 if ours > 0 and others[0] > 2 * ours else 1 if ours > 0 else 3],
    ),
    "Fig 12, 13, 33, Table 3": Row(
        lambda: said("10", r"\(-([\d.]+)% of itself") + said("10", r"interval over prompts (-?[\d.]+) to (-?[\d.]+)\)"),
        lambda share, low, high: VERDICTS[3 if high < 0 else 0 if low > 0 else 2],
    ),
    "Table 4": Row(
        lambda: said("10", rf"{SHARE} as trained, {SHARE} aligned")
        + said("10", r"Gained: (\d+) of (\d+) prompts, lost: (\d+)"),
        lambda before, after, gained, prompts, lost: VERDICTS[0 if gained > lost else 3 if lost > 3 * gained else 2],
    ),
    "the method as a whole": Row(
        lambda: (
            said("12", r"label maps in (\d+) pixels")
            + said("12", rf"Who may win a pixel is worth {SIGNED} points")
            + said("12", rf"Matching every row anew is worth {SIGNED} points")
            + said("12", r"precision change the mIoU by at most ([\d.]+) points")
        ),
        lambda pixels, classes, names, others: "identical" if pixels == 0 and min(-classes, names) > 5 * others else "",
    ),
    "App G": Row(
        lambda: (
            said("14", rf"with nothing to choose, by {SIGNED} points {SPAN}")
            + said("14", rf"Guided upsampling changes mIoU by {SIGNED} points {SPAN}")
            + said("14", rf"tiles by {SIGNED} points {SPAN}")
            + said("14", rf"the annotated word scores {SHARE}, the everyday word {SHARE}")
        ),
        lambda *found: "extended" if min(found[1], found[4], found[7]) > 0 and found[-1] > found[-2] else "",
    ),
}  # fmt: skip
"""Rows with a verdict; those that need other models, or only measure, have none."""


def paper_rows() -> dict[str, str]:
    """Outcomes of paper.md by the first cell of their row."""
    cells = [line.strip("| ").split(" | ") for line in PAGES["paper"].splitlines() if line.startswith("| ")]
    return {row[0]: row[-1] for row in cells[2:]}


@pytest.mark.parametrize("name", ROWS)
def test_verdicts_of_the_paper_page(name):
    numbers, outcome = ROWS[name].numbers(), paper_rows()[name]
    verdict = ROWS[name].verdict(*numbers)
    assert verdict, f"the rule of {name} does not hold for {numbers}"
    assert outcome.startswith(verdict), f"{name} comes out as {verdict!r} ({numbers}), and the page says {outcome!r}"
    assert unproved(outcome, numbers) == []


def test_every_verdict_of_the_paper_page_has_a_rule():
    free = ("needs ", "measured")
    assert sorted(name for name, outcome in paper_rows().items() if not outcome.startswith(free)) == sorted(ROWS)


def test_every_row_of_the_paper_page_says_what_makes_it():
    rows = [line.strip("| ").split(" | ") for line in PAGES["paper"].splitlines() if line.startswith("| ")][2:]
    for name, _, chapters, command, _ in rows:
        ran = re.findall(r"`book/execute\.py (notebooks/\d\d\*\.ipynb)`", command)
        assert sorted(path.stem for pattern in ran for path in ROOT.glob(pattern)) == sorted(
            re.findall(r"`notebooks/(\w+)`", chapters)
        ), name
        assert all((ROOT / script).is_file() for script in re.findall(r"scripts/\w+\.py", command)), name


def test_a_wrong_number_is_found():
    assert unproved("at 8 of 28, layer 4 has 67.1 % (Fig 9)", (8, 28, 67.14)) == ["4"]
    assert unproved("67 to 68.0 %", (67.14, 68.1)) == ["68.0"]


CLAIMS = {
    "8 steps from the end are": (
        lambda: (8, *said("02", r"The paper's 8 of 28 is ([\d.]+) points behind it")),
        lambda steps, costs: costs < 1,
    ),
    "image-to-text beats text-to-image": (
        lambda: said("08", r"better in (\d+) of (\d+) pairs"),
        lambda better, pairs: better > 0.8 * pairs,
    ),
    "the same masks, to the pixel": (lambda: said("12", r"label maps in (\d+) pixels"), lambda pixels: pixels == 0),
    "layer 4 segments as well as": (
        lambda: (EXPERT, *said("02", r"So layer (\d+) and layer (\d+) cannot be told from it")),
        lambda *layers: True,
    ),
    "blurring its words changes pictures most": (
        blur_by_layer,
        lambda alike, fit, features, kept, _: alike == fit == EXPERT and kept > 0.9,
    ),
    "softmax beats raw scores in layer": (
        normalized,
        lambda softmax, scores, both, layers, ahead, *_: softmax > scores,
    ),
    "masks teach a layer": (
        lambda: (mask_losses()["shares"], mask_losses()["softmax"]),
        lambda ours, text: ours > 0 > text,
    ),
    "pictures do not improve": (
        lambda: said("10", rf"{SHARE} as trained, {SHARE} aligned"),
        lambda before, after: after < before,
    ),
    "averaging all layers gains": (
        lambda: (
            said("14", rf"with nothing to choose, by {SIGNED} points {SPAN}")[:2]
            + said("14", rf"Guided upsampling changes mIoU by {SIGNED} points {SPAN}")[:2]
        ),
        lambda layers, low, edges, lowest: min(low, lowest) > 0,
    ),
    "all additions together": (
        lambda: (
            said("14", rf"mini scores {SHARE}; choosing among all 40, {SHARE}")
            + said("14", rf"Best under present: [^%]*?, {SHARE}")
            + said("14", rf"under full: [^%]*?, {SHARE}")
        ),
        lambda present, full, best_present, best_full: best_present > present and best_full > full,
    ),
    "in the background": (
        lambda: said("14", rf"The word itself scores {SHARE}, words for what is there {SHARE}"),
        lambda word, words: words > word,
    ),
}
"""Sentences of the introduction, by words in them: what chapters print, and what has to hold of it."""


def sentences() -> list[str]:
    """The sentences of the introduction that say what came out."""
    came_out = PAGES["intro"].partition("## What came out")[2].partition("{doc}`paper`")[0]
    bullets = " ".join(came_out.partition("- **")[2].split())
    return [part.strip(" -*") for part in re.split(r"; |(?<=[^.])\. |\.$|- \*\*", bullets) if part.strip(" -*")]


@pytest.mark.parametrize("key", CLAIMS)
def test_claims_of_the_introduction(key):
    (sentence,) = [one for one in sentences() if key in one]
    numbers, holds = CLAIMS[key][0](), CLAIMS[key][1]
    assert holds(*numbers), f"{sentence!r} does not follow from {numbers}"
    assert unproved(sentence, numbers) == []


def test_every_sentence_of_the_introduction_is_a_claim():
    free = "words segment the picture in the middle layers"  # a claim of its own below
    assert [one for one in sentences() if not any(key in one for key in (*CLAIMS, free))] == []
    assert 4 <= drawn("02", "mini, 200 scenes", "mIoU").argmax() <= 7


def test_the_readme_quotes_the_model_cards():
    text = " ".join(PAGES["README"].partition("## The embedded model")[2].partition("## Cost")[0].split())
    cards = {
        name: (ROOT / "seg4diff_tools/models" / name / "README.md").read_text("utf-8")
        for name in ("mini", "mini-magnet")
    }

    def row(card: str, start: str) -> list[float]:
        (line,) = [line for line in cards[card].splitlines() if line.startswith(f"| {start} |")]
        return [float(number) for number in re.findall(r"\d+\.\d+", line)]

    quoted = [float(number) for number in re.findall(r"(\d+\.\d) (?:%|instead)", text)]
    of_mini = [
        row("mini", f"{scenes} | {names}")[0]
        for scenes, names in (
            ("unseen scenes", "the classes present"),
            ("drawings of a held-out style", "the classes present"),
            ("unseen scenes", "the whole vocabulary"),
        )
    ]
    before, control, after = row("mini-magnet", "the prompt names the classes present")
    assert quoted == [*of_mini, after, before, control]
    as_trained, aligned = said("10", rf"{SHARE} as trained, {SHARE} aligned")
    assert f"{aligned:.0f} instead of {as_trained:.0f} % hold all" in text
