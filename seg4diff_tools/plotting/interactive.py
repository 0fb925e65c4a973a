"""Interactive charts of scores (plotly), which work in the built report, without Python."""

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
import pandas as pd
from jaxtyping import Float

from seg4diff_tools.errors import InputError, named_extra, require_columns
from seg4diff_tools.plotting.checks import OKABE_ITO

with named_extra():
    import plotly.graph_objects as go

AXES = {
    "layer": "layer (from 0)",
    "head": "head (from 0)",
    "step": "step",
    "steps_from_end": "steps from the end (1 = nearly no noise)",
    "normalize": "normalization of the maps",
    "norm": "mean L2 norm of values",
    "scale": "scale of perturbed guidance",
    "threshold": "threshold of merging (nats)",
    "difference": "difference in mIoU (points)",
}
"""Axis titles of known columns; others are titled with their names."""

MANY_BARS, UPRIGHT, LINE_OF_LETTERS = 20, 10, 110
"""Bars whose numbers would meet if they lay flat, names that fit below them upright, and letters of a line of these."""

WHISKER = {"thickness": 1, "width": 4}
"""Error bars, through which the number in a bar can be read."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")


def curves(
    table: pd.DataFrame,
    x: str,
    y: str | Sequence[str],
    by: str | None = None,
    *,
    interval: tuple[str, str] | None = None,
    percent: bool = True,
    mark: int | float | None = None,
    title: str = "",
) -> go.Figure:
    """Draw scores along layers or steps, a line for each score or for each group of rows.

    Args:
        table: tidy, such as `layer_step_sweep(...).table()`.
        x: column of the horizontal axis.
        y: column of the vertical axis, or several, a line each.
        by: column that tells lines apart.
        interval: columns of the lower and upper end of error bars, where `y` is one column.
        percent: show shares (0 to 1) in percent.
        mark: draw a dotted vertical line at this x, such as the paper's layer or step.
        title: of the figure.

    Raises:
        InputError: a missing column.

    Source: Seg4Diff, arXiv 2509.18096, figures 8 and 15.
    """
    scores = _columns(y, "y")
    ends = _interval(interval)
    require_columns(table, [x, *scores, *([by] if by else []), *ends], numeric=[*scores, *ends])
    if interval and len(scores) > 1:
        raise InputError(f"expected one score for an interval, got {', '.join(scores)}: use `by` for several lines")
    if table[x].map(lambda value: isinstance(value, str)).nunique() > 1:
        raise InputError(f"expected numbers or words in the column {x}, got both: select some of the rows")
    groups = [("", table)] if by is None else [(str(name), rows) for name, rows in table.groupby(by, sort=False)]
    figure = go.Figure()
    for group, rows in groups:
        rows = rows.sort_values(x)
        bars = None
        if interval:
            below, above = (_short((100 if percent else 1) * (rows[end] - rows[scores[0]]).abs()) for end in interval)
            bars = {"array": above, "arrayminus": below, "thickness": 1, "width": 3}
        for score in scores:
            number = len(figure.data)
            figure.add_scatter(
                x=rows[x].to_numpy(),
                y=_short((100 if percent else 1) * rows[score]),
                error_y=bars,
                name=", ".join(filter(None, [group, score if len(scores) > 1 or not group else ""])),
                mode="lines+markers",
                line={"color": OKABE_ITO[number % len(OKABE_ITO)], "dash": DASHES[number % len(DASHES)]},
                marker={"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 8},
            )
    if mark is not None:
        figure.add_vline(mark, line={"dash": "dot", "color": "gray", "width": 1})
    places = sorted(table[x].unique().tolist())
    figure.update_xaxes(title=AXES.get(x, x), tickvals=places if len(places) <= 30 else None)
    figure.update_yaxes(title=_score_title(scores, percent), rangemode="tozero")
    figure.update_layout(hovermode="x unified", showlegend=len(figure.data) > 1)
    return finished(figure, title, height=380)


def score_map(
    table: pd.DataFrame, x: str, y: str, scores: str | Sequence[str] = "mIoU", *, percent: bool = True, title: str = ""
) -> go.Figure:
    """Draw a heat map of a score over two axes, such as layer x step or layer x head; its highest cell is framed.

    Args:
        table: tidy, one row for each cell.
        x: column of the horizontal axis.
        y: column of the vertical axis.
        scores: column of the values, or several to choose from in a menu.
        percent: show shares (0 to 1) in percent.
        title: of the figure.

    Raises:
        InputError: a missing column, or several rows for one cell.

    Source: Seg4Diff, arXiv 2509.18096, figures 15 and 17.
    """
    scores = _columns(scores, "scores")
    require_columns(table, [x, y, *scores], numeric=scores)
    if empty := [score for score in scores if table[score].isna().all()]:
        raise InputError(f"expected values in the column {empty[0]}, got none: choose another score")
    if x == y or table.duplicated([x, y]).any():
        raise InputError(f"expected one row for each pair of {x} and {y}, got several: select the other columns first")
    figure = go.Figure()
    frames, buttons = [], []
    for number, score in enumerate(scores):
        cells = table.pivot(index=y, columns=x, values=score)
        exact = (100 if percent else 1) * cells.to_numpy(dtype=np.float64)
        values = exact.round(1 if percent else 4)
        unit, digits, written = (" %", ".1f", "{:.0f}") if percent else ("", ".3g", "{:.2f}")
        figure.add_heatmap(
            x=[str(value) for value in cells.columns],
            y=[str(value) for value in cells.index],
            z=values.astype(np.float32),
            colorscale="Viridis",
            colorbar={"title": _score_title([score], percent), "title_side": "right"},
            # written from the exact values: a rounded one would be rounded twice
            text=[["" if np.isnan(v) else written.format(v) for v in row] for row in exact],
            texttemplate="%{text}" if values.size <= 200 else None,
            hovertemplate=f"{x} %{{x}}<br>{y} %{{y}}<br>{score} %{{z:{digits}}}{unit}<extra></extra>",
            visible=number == 0,
        )
        row, column = np.unravel_index(np.nanargmax(exact), exact.shape)
        edges = {"x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5}
        frames.append({"type": "rect", **edges, "line": {"color": OKABE_ITO[5], "width": 3}})
        changes = {"visible": [other == number for other in range(len(scores))]}, {"shapes": [frames[-1]]}
        buttons.append({"label": score, "method": "update", "args": list(changes)})
    figure.update_xaxes(title=AXES.get(x, x), type="category", showgrid=False)
    figure.update_yaxes(title=AXES.get(y, y), type="category", showgrid=False)
    figure.update_layout(shapes=frames[:1])
    if len(scores) > 1:
        figure.update_layout(
            updatemenus=[{"buttons": buttons, "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom", "pad": {"b": 6}}]
        )
    return finished(figure, title, height=150 + 26 * max(7, table[y].nunique()))


def bars(
    table: pd.DataFrame,
    x: str,
    y: str = "mIoU",
    by: str | None = None,
    *,
    spread: str | None = None,
    interval: tuple[str, str] | None = None,
    percent: bool = True,
    title: str = "",
) -> go.Figure:
    """Draw scores side by side, such as settings on the horizontal axis and a color for each model.

    Args:
        table: tidy, one row for each bar.
        x: column of the horizontal axis, in the order of the rows.
        y: column of the heights.
        by: column that colors the bars, such as "model".
        spread: column of the half length of error bars, such as a deviation over seeds.
        interval: columns of the lower and upper end of error bars, in place of `spread`.
        percent: show shares (0 to 1) in percent.
        title: of the figure.

    Raises:
        InputError: a missing column.
    """
    ends = [*_interval(interval), *([spread] if spread else [])]
    if interval and spread:
        raise InputError(
            f"expected spread or interval, got both (spread={spread!r}, interval={interval}): leave one of them out"
        )
    require_columns(table, [x, y, *([by] if by else []), *ends], numeric=[y, *ends])
    unit = 100 if percent else 1

    def lengths(rows: pd.DataFrame) -> dict | None:
        if interval:
            below, above = (_short(unit * (rows[end] - rows[y]).abs()) for end in interval)
            return WHISKER | {"array": above, "arrayminus": below}
        return WHISKER | {"array": _short(unit * rows[spread])} if spread else None

    figure = go.Figure()
    groups = [("", table)] if by is None else table.groupby(by, sort=False)
    for number, (name, rows) in enumerate(groups):
        figure.add_bar(
            x=rows[x].astype(str).tolist(),
            y=_short(unit * rows[y]),
            error_y=lengths(rows),
            name=str(name),
            marker={
                "color": OKABE_ITO[number % len(OKABE_ITO)],
            },
            # written from the exact values: a shortened one would be rounded twice
            text=[f"{unit * value:.1f}" for value in rows[y]],
            texttemplate="%{text}",
            hovertemplate="%{x}<br>%{text}<extra>%{fullData.name}</extra>",
            # above the bar a number would stand in the whisker
            textposition="inside" if interval or spread else "outside",
            insidetextanchor="start",
            textfont={"size": 10},
            textangle=-90 if len(table) > MANY_BARS else 0,
            constraintext="none",
            cliponaxis=False,
        )
    figure.update_xaxes(title=AXES.get(x, x), type="category")
    names = list(dict.fromkeys(table[x].astype(str)))
    if len(names) <= UPRIGHT:  # in lines below each other, which would be slanted otherwise
        lines = [wrap(name, LINE_OF_LETTERS // len(names), break_long_words=False) for name in names]
        figure.update_xaxes(tickvals=names, ticktext=["<br>".join(line) for line in lines])
    figure.update_yaxes(title=_score_title([y], percent), rangemode="tozero")
    figure.update_layout(showlegend=by is not None, barmode="group")
    return finished(figure, title, height=360)


def scatter(
    table: pd.DataFrame, x: str, y: str = "mIoU", *, label: str = "layer", percent: bool = True, title: str = ""
) -> go.Figure:
    """Draw one column against another, a labeled point for each row, such as value norms against scores of layers.

    Args:
        table: one row for each point.
        x: column of the horizontal axis.
        y: column of the vertical axis.
        label: column that is written beside the points.
        percent: show shares (0 to 1) of `y` in percent.
        title: of the figure.

    Raises:
        InputError: a missing column.
    """
    require_columns(table, [x, y, label], numeric=[x, y])
    figure = go.Figure()
    figure.add_scatter(
        x=_short(table[x]),
        y=_short((100 if percent else 1) * table[y]),
        mode="markers+text",
        text=[str(value) for value in table[label]],
        textposition="top center",
        marker={"size": 10, "color": OKABE_ITO[0]},
        hovertemplate=f"{label} %{{text}}<br>{x} %{{x:.3g}}<br>{y} %{{y:.3g}}<extra></extra>",
        cliponaxis=False,
    )
    figure.update_xaxes(title=AXES.get(x, x))
    figure.update_yaxes(title=_score_title([y], percent))
    return finished(figure, title, height=380)


def intervals(
    table: pd.DataFrame,
    y: str,
    x: str = "difference",
    low: str = "low",
    high: str = "high",
    *,
    percent: bool = True,
    title: str = "",
) -> go.Figure:
    """Draw values with their intervals, a row each, against a line at zero, such as differences to a base.

    Args:
        table: one row for each value, from top to bottom.
        y: column that names the rows.
        x: column of the values.
        low: column of the intervals' lower ends.
        high: column of their upper ends.
        percent: show shares (-1 to 1) in points of 100.
        title: of the figure.

    Raises:
        InputError: a missing column.
    """
    require_columns(table, [y, x, low, high], numeric=[x, low, high])
    unit = 100 if percent else 1
    value, least, most = (unit * table[column].to_numpy(dtype=np.float64) for column in (x, low, high))
    figure = go.Figure()
    figure.add_scatter(
        x=value.round(2),
        y=table[y].astype(str).tolist(),
        mode="markers",
        marker={"size": 9, "color": OKABE_ITO[0]},
        error_x={"array": (most - value).round(2), "arrayminus": (value - least).round(2), "color": "gray"},
    )
    figure.add_vline(0, line={"dash": "dot", "color": "gray", "width": 1})
    figure.update_xaxes(title=AXES.get(x, x))
    figure.update_yaxes(autorange="reversed", automargin=True)
    return finished(figure, title, height=150 + 28 * len(table))


def _columns(value: str | Sequence[str], name: str) -> list[str]:
    """Return one or several names of columns as a list."""
    columns = [value] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
    if not columns or not all(isinstance(column, str) for column in columns):
        raise InputError(f"expected {name} as names of columns, got {value!r}: pass {name}='mIoU'")
    return columns


def _interval(interval: tuple[str, str] | None) -> list[str]:
    """Return the columns of an interval as a list, empty for None."""
    if interval is not None and (not isinstance(interval, (list, tuple)) or len(interval) != 2):
        raise InputError(f"expected interval as two columns, got {interval!r}: pass interval=('low', 'high')")
    return list(interval or ())


def _score_title(scores: Sequence[str], percent: bool) -> str:
    name = scores[0] if len(scores) == 1 else "score"
    return f"{name} (%)" if percent else name


def _short(values: pd.Series) -> Float[np.ndarray, " row"]:
    """Round values to four digits, more than a figure can show."""
    return np.array([float(f"{value:.4g}") for value in values])


def finished(figure: go.Figure, title: str, height: int) -> go.Figure:
    """Apply the common style, a title and a height in pixels to a figure, in place."""
    return figure.update_layout(
        template="plotly_white",
        title={"text": title, "font": {"size": 15}, "y": 0.97, "yanchor": "top"},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        height=height,
        margin={"l": 60, "r": 20, "t": 80 if title else 50, "b": 50},
    )
