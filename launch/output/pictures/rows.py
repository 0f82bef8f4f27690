"""What pictures of a schedule share: a row for each stage, boxes in it, arrows from one row to the next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator

SIDE = 1.0  # inches left of the boxes, for the stages' names
_ONE_LINE, _TWO_LINES = 0.1, 0.28  # inches that a row needs for a name of so many


def strip(begin: float, end: float, row: int, half: float) -> list[tuple[float, float]]:
    """The corners of a rectangle in a row, ``half`` a row's height being 0.5."""
    return [(begin, row - half), (end, row - half), (end, row + half), (begin, row + half)]


def arrows(axes: Axes, rows: Sequence[Iterable[tuple[float, float]]], half: float) -> None:
    """For each row its arrows to the next one: when they leave a box, and when they come to one, of such a height."""
    lines = [
        [(departure, row + half), (arrival, row + 1 - half - 0.03)]
        for row, found in enumerate(rows)
        for departure, arrival in found
    ]
    axes.add_collection(LineCollection(lines, gid="arrows", color="0.25", linewidth=0.8))
    heads = [end for _, end in lines]
    axes.plot([x for x, _ in heads], [y for _, y in heads], "v", color="0.25", markersize=3.2)


def stage_axis(axes: Axes, stages: Sequence[str], height: float, length: float, unit: str) -> None:
    """Makes the axes those of stages and time.

    Args:
        stages: names of the rows, first stage first; may have two lines.
        height: of a row, in inches.
        length: of the time, in ``unit``.
    """
    axes.set_xlim(0, length)
    axes.set_ylim(len(stages) - 0.5, -0.5)
    if height > _TWO_LINES:
        axes.set_yticks(range(len(stages)), stages)
    else:
        named = range(0, len(stages), math.ceil(_ONE_LINE / height))
        axes.set_yticks(named, [stages[row].replace("\n", ", ") for row in named], fontsize=6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel(unit, labelpad=1)
