"""Matrices of classes: confusion, and similarity of label embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from launch.output.pictures.style import MANY, Numbers, panel_grid, shown, styled

_NAMED = 100  # more classes than this do not fit an axis by name
_CELLS = 12  # up to so many classes every cell of a matrix shows its number
DIAGONAL = "0.82"
"""Grey of a class with itself."""


@dataclass(frozen=True)
class Classes:
    """How the classes of a matrix are shown: in which order, and with which groups named at its edge.

    Attributes:
        names: in label order.
        order: labels from first to last row.
        groups: (name, number of classes) along the order; empty without super-classes.
    """

    names: Sequence[str]
    order: Sequence[int]
    groups: Sequence[tuple[str, int]] = ()


_CONFUSED = "share of the true class (%)"


@styled
def confusion(shares: Numbers, classes: Classes, *, title: str) -> Figure:
    """Share of each class's images (row) taken for each class (column): (Z, Z) in 0 … 1."""
    figure, axes = _large(len(shares))
    image = _matrix(axes, shares * 100, classes, "Blues", (0, 100), number="{:.0f}")
    axes.set_title(title)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    _colour_bar(figure, image, [axes], _CONFUSED)
    return figure


@styled
def confusions(shares: Sequence[Numbers], titles: Sequence[str], classes: Classes) -> Figure:
    """Small confusion matrices side by side, one a layer."""
    names, lines = list(_names(classes, large=False).values()), max(title.count("\n") for title in titles) + 1
    figure, panels = panel_grid(len(shares), side=2.1, names=names, title_lines=lines)
    for axes, values, title in zip(panels, shares, titles, strict=True):
        image = _matrix(axes, values * 100, classes, "Blues", (0, 100))
        axes.set_title(title, fontsize=8)
    _name_outer_axes(panels)
    figure.supxlabel("predicted class", fontsize=8)
    figure.supylabel("true class", fontsize=8)
    _colour_bar(figure, image, panels, _CONFUSED)
    return figure


@styled
def similarity(values: Numbers, classes: Classes, *, title: str, label: str) -> Figure:
    """Similarity matrix of label embeddings (Z, Z), red for alike and blue for opposed.

    The diagonal, a class with itself, is grey: it is 1, or the squared norm, and says nothing about classes.
    """
    figure, axes = _large(len(values))
    limit = _limit([values])
    number = _number(np.abs(values).max())
    image = _matrix(axes, values, classes, "RdBu_r", (-limit, limit), number=number, without_diagonal=True)
    axes.set_title(title)
    _colour_bar(figure, image, [axes], label)
    return figure


@styled
def similarities(matrices: Sequence[Numbers], titles: Sequence[str], classes: Classes, *, label: str) -> Figure:
    """Small similarity matrices side by side, a grey diagonal in each, on one scale of colours."""
    figure, panels = panel_grid(len(matrices), side=2.3, names=list(_names(classes, large=False).values()))
    limit = _limit(matrices)
    for axes, values, title in zip(panels, matrices, titles, strict=True):
        image = _matrix(axes, values, classes, "RdBu_r", (-limit, limit), without_diagonal=True)
        axes.set_title(title)
    _name_outer_axes(panels)
    _colour_bar(figure, image, panels, label)
    return figure


def _large(num_classes: int) -> tuple[Figure, Axes]:
    """A figure for one matrix whose classes have names."""
    side = min(9.0, max(3.2, (0.36 if num_classes <= _CELLS else 0.2) * num_classes))
    figure = Figure(figsize=(side + 1.7, side + 1.1), layout="constrained")
    return figure, figure.subplots()


def _limit(matrices: Sequence[Numbers]) -> float:
    """The largest size of what lies off the diagonals."""
    return max(float(np.abs(values[~np.eye(len(values), dtype=bool)]).max()) for values in matrices) or 1.0


def _colour_bar(figure: Figure, image: AxesImage, panels: Sequence[Axes], label: str) -> None:
    bar = figure.colorbar(image, ax=panels, shrink=0.8, aspect=25, pad=0.02)
    bar.locator = MaxNLocator(5)
    bar.outline.set_visible(False)
    bar.set_label(label)


def _name_outer_axes(panels: Sequence[Axes]) -> None:
    """Takes class names off panels that have a neighbour which names them: to the left, or below."""
    for axes in panels:
        panel = axes.get_subplotspec()
        assert panel is not None, "made by subplots()"
        below = [other for other in panels if _under(other, axes)]
        if panel.colspan.start > 0:
            axes.set_yticks([])
        if below:
            axes.set_xticks([])


def _under(lower: Axes, upper: Axes) -> bool:
    low, up = lower.get_subplotspec(), upper.get_subplotspec()
    assert low is not None and up is not None, "made by subplots()"
    return low.colspan.start == up.colspan.start and low.rowspan.start > up.rowspan.start


def _number(limit: float) -> str:
    return "{:.2f}" if limit < 2 else "{:.1f}" if limit < 20 else "{:.0f}"


def _matrix(
    axes: Axes,
    values: Numbers,
    classes: Classes,
    colours: str,
    limits: tuple[float, float],
    *,
    number: str | None = None,
    without_diagonal: bool = False,
) -> AxesImage:
    """Draws a matrix; with a ``number`` format it is large, and every cell of a small number of classes has one."""
    large, order = number is not None, list(classes.order)
    ordered, count = values[np.ix_(order, order)], len(order)
    coloured = np.ma.masked_where(np.eye(count, dtype=bool) & without_diagonal, ordered)
    palette = mpl.colormaps[colours].with_extremes(bad=DIAGONAL)
    image = axes.imshow(coloured, cmap=palette, vmin=limits[0], vmax=limits[1], interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    named = _names(classes, large=large)
    if named:
        few = count <= 30 or len(named) < count
        _name_axes(axes, list(named), list(named.values()), (7.5 if few else 5) if large else 6)
    elif classes.groups:
        axes.set_xticks([])
        axes.set_yticks([])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ends = np.cumsum([size for _, size in classes.groups])
    for end in ends[:-1]:
        axes.axhline(end - 0.5, color="0.4", linewidth=0.5 if large else 0.3)
        axes.axvline(end - 0.5, color="0.4", linewidth=0.5 if large else 0.3)
    if number is not None and count <= _CELLS:
        middle, reach = sum(limits) / 2, (limits[1] - limits[0]) / 2
        for (row, column), value in np.ndenumerate(ordered):
            text = number.format(value)
            if float(text) == 0:
                text = number.format(0)  # not -0
                if limits[0] == 0:
                    continue  # an empty cell says it as well
            grey = without_diagonal and row == column
            dark = value > middle + 0.2 * reach if limits[0] == 0 else abs(value - middle) > 0.62 * reach and not grey
            text = text.replace("-", "−")
            axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color="white" if dark else "0.15")
    return image


def _names(classes: Classes, *, large: bool) -> dict[float, str]:
    """What is named along a matrix, by its position: classes, or groups where classes are too many, or nothing."""
    most, width, count = (_NAMED, None, len(classes.order)) if large else (_CELLS, 0.95, len(classes.order))
    if count <= most and not (classes.groups and count > MANY):
        return {position: shown(classes.names[label], width) for position, label in enumerate(classes.order)}
    if len(classes.groups) > most:
        return {}
    ends = np.cumsum([size for _, size in classes.groups])
    positions = [float(end) - size / 2 - 0.5 for end, (_, size) in zip(ends, classes.groups, strict=True)]
    return {position: shown(name, width) for position, (name, _) in zip(positions, classes.groups, strict=True)}


def _name_axes(axes: Axes, positions: Sequence[float], names: Sequence[str], size: float) -> None:
    if max(len(name) for name in names) <= 3 and len(names) <= _CELLS:
        axes.set_xticks(positions, names, fontsize=size)
    elif len(names) <= _CELLS:
        axes.set_xticks(positions, names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    else:
        axes.set_xticks(positions, names, rotation=90, fontsize=size)
    axes.set_yticks(positions, names, fontsize=size)
