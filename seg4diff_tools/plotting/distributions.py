"""Static figures of scores (seaborn): distributions over images, confusion matrices."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from seg4diff_tools.errors import InputError, as_names, named_extra, require_columns
from seg4diff_tools.plotting.checks import OKABE_ITO, closed, numbers

with named_extra():
    import seaborn as sns


def score_histogram(table: pd.DataFrame, score: str = "mIoU", by: str | None = None, *, title: str = "") -> Figure:
    """Show the distribution of a score over images.

    Args:
        table: one row for each image, such as `Evaluation.of_images`; scores from 0 to 1.
        score: column to count.
        by: column of the groups of images; the bars of each group add up to 100 %.
        title: of the figure.

    Raises:
        InputError: a missing column.
    """
    require_columns(table, [score, *([by] if by else [])], numeric=[score])
    groups, low, high = table[by].nunique() if by else 1, table[score].min(), table[score].max()
    if groups > len(OKABE_ITO) or not 0 <= low <= high <= 1:
        raise InputError(
            f"expected scores from 0 to 1 in at most {len(OKABE_ITO)} groups, got {low:.3g} to {high:.3g} in {groups}: "
            "choose another column, or some of the rows"
        )
    figure, axis = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
    sns.histplot(
        x=100 * table[score],
        hue=table[by] if by else None,
        palette=list(OKABE_ITO[:groups]) if by else None,
        color=OKABE_ITO[0],
        bins=np.arange(0, 101, 5),
        stat="percent",
        common_norm=False,
        element="step",
        ax=axis,
    )
    axis.set(xlabel=f"{score} of an image (%)", ylabel="images (%)", xlim=(0, 100))
    axis.set_title(title, loc="left", fontsize=10)
    sns.despine(figure)
    return closed(figure)


def confusion(
    matrix: Any, class_names: Sequence[str] | None = None, *, percent: bool = True, title: str = ""
) -> Figure:
    """Show a confusion matrix as a heat map, a row for each true class.

    Args:
        matrix: pixels (or shares) by true class (rows) and found class (columns); a DataFrame, an array or a tensor.
        class_names: of rows and columns; None for those of a DataFrame.
        percent: show each row in percent of its sum; a class without pixels stays empty.
        title: of the figure.

    Raises:
        InputError: no square matrix of numbers from 0, or another number of names.
    """
    if class_names is None and not isinstance(matrix, pd.DataFrame):
        raise InputError("expected class_names for the rows of an array, got None: pass class_names=['cat', 'dog']")
    names = [str(name) for name in matrix.index] if class_names is None else as_names(class_names, "class_names")
    counts = numbers(matrix, 2)
    if counts.shape != (len(names), len(names)) or not (counts >= 0).all():
        raise InputError(
            f"expected a matrix of numbers from 0 with a row and a column for each of {len(names)} class names, got "
            f"shape {counts.shape}: pass counts by true and found class"
        )
    sums = counts.sum(1, keepdims=True)
    shown = 100 * np.divide(counts, sums, out=np.full_like(counts, np.nan), where=sums > 0) if percent else counts
    side = 1.6 + 0.38 * len(names)
    figure, axis = plt.subplots(figsize=(side + 1.2, side), layout="constrained", dpi=110)
    sns.heatmap(
        pd.DataFrame(shown, index=names, columns=names),
        cmap="viridis",
        annot=len(names) <= 20,
        fmt=".0f" if percent else ".3g",
        square=True,
        cbar_kws={"label": "share of the true class (%)" if percent else "pixels", "shrink": 0.8},
        annot_kws={"fontsize": 8},
        ax=axis,
    )
    axis.set(xlabel="found class", ylabel="true class")
    axis.set_title(title, loc="left", fontsize=10)
    return closed(figure)
