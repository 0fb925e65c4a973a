"""Comparison of two evaluations on the same images."""

import pandas as pd

from seg4diff_tools.errors import InputError, as_names, instance_of, one_of
from seg4diff_tools.evaluation import metrics
from seg4diff_tools.evaluation.results import SCORES, Evaluation


def compare(
    a: Evaluation,
    b: Evaluation,
    score: str = "mIoU",
    *,
    level: float = 0.95,
    simultaneous: bool = False,
    names: tuple[str, str] | None = None,
) -> pd.DataFrame:
    """Compare two evaluations row by row on their common images, for instance those of two models.

    Args:
        a, b: evaluations of the same samples; rows of the same method and protocol are compared, or the only rows.
        score, level, simultaneous: as in `Evaluation.table`.
        names: of a and b; their models by default.

    Returns:
        The row, a and b (scores, 0..1), gain (a minus b) with low and high (jackknife interval over images, paired),
        images, and the verdict in words.

    Raises:
        InputError: no row or image in common, other images under the same index, or an unknown score.
    """
    for name, each in (("a", a), ("b", b)):
        instance_of(each, Evaluation, name, "what evaluate returns")
    one_of(simultaneous, "simultaneous", (False, True))
    called: tuple[str, ...] = (str(a.settings["model"]), str(b.settings["model"]))
    if names is not None:
        called = as_names(names, "names", example="('mine', 'theirs')")
        if len(called) != 2:
            raise InputError(f"expected names, one for a and one for b, got {names!r}: pass names=('mine', 'theirs')")
    one, two = (dict(zip(each.images.tolist(), each.fingerprints, strict=True)) for each in (a, b))
    shared = [image for image in one if image in two]
    if other := [image for image in shared if one[image] != two[image]]:
        raise InputError(
            f"expected evaluations of the same samples, got other images as number {other[0]}: evaluate both on the "
            f"same"
        )
    pairs = [(row, list(b.rows).index(row)) for row in a.rows if row in list(b.rows)]
    keys = [(place, list(a.rows).index(row)) for row, place in pairs]
    if not pairs and len(a.rows) == len(b.rows) == 1:
        keys = [(0, 0)]
    if not shared or not keys:
        raise InputError(
            f"expected evaluations with rows and images in common, got {len(keys)} rows and {len(shared)} images: give "
            "methods the same names and evaluate the same samples"
        )
    if called[0] == called[1]:
        called = (f"{called[0]} (a)", f"{called[1]} (b)")
    (scores_a, left_a), (scores_b, left_b) = (
        each.leave_one_out(score, [each.images.tolist().index(image) for image in shared]) for each in (a, b)
    )
    found = []
    for other_place, place in keys:
        gain = float(scores_a[place] - scores_b[other_place])
        ends = metrics.interval(gain, left_a[place] - left_b[other_place], level, len(keys) if simultaneous else 1)
        low, high = (float(end) for end in ends)
        unit = "points" if score in SCORES else score
        found.append(
            dict(zip(a.rows.names, a.rows[place], strict=True))
            | {"a": scores_a[place], "b": scores_b[other_place], "gain": gain, "low": low, "high": high}
            | {"images": len(shared), "verdict": metrics.verdict(called[0], called[1], gain, low, high, unit)}
        )
    return pd.DataFrame(found)
