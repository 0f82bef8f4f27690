"""A table in one picture: its first measure over its last label, with mean and deviation over the seeds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.output.pictures.style import BLUE, GREEN, GREY, ORANGE, WIDTH, styled
from launch.reproduce.results import Row
from launch.reproduce.table import Table

_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00")


@styled
def draw(title: str, table: Table, rows: Sequence[Row]) -> Figure:
    """A line for all rows whose labels but the last, a number, are the same. The paper's figures are stars.

    Args:
        title: may have several lines.
    """
    series: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        series.setdefault(row.entry.labels[:-1], []).append(row)
    figure = Figure(figsize=(WIDTH, 3.4 + 0.16 * len(series)), layout="constrained")
    figure.suptitle(title, fontsize=8, x=0.01, ha="left", linespacing=1.4)
    axes = figure.subplots()
    name, measure = table.measured[0]
    for colour, (labels, of_series) in zip(itertools.cycle(_COLOURS), series.items(), strict=False):
        _line(axes, of_series, name, colour, ", ".join(labels) or "here")
    if any(row.figures[name].paper is not None for row in rows):
        axes.plot([], [], linestyle="none", marker="*", markersize=9, color=GREY, label="in the paper")
    axes.set_xticks(sorted({_place(row) for row in rows}))
    axes.set_xlabel(table.headings[-1])
    axes.set_ylabel(measure.heading)
    axes.grid(axis="y")
    figure.legend(loc="outside lower left")
    return figure


def _line(axes: Axes, rows: Sequence[Row], name: str, colour: str, label: str) -> None:
    known = [(_place(row), row.figures[name]) for row in rows]
    measured = [(place, figure.mean, figure.deviation or 0.0) for place, figure in known if figure.mean is not None]
    places, means, deviations = ([one[part] for one in measured] for part in range(3))
    axes.errorbar(places, means, yerr=deviations, color=colour, marker="o", capsize=2.5, elinewidth=0.8, label=label)
    paper = [(place, figure.paper) for place, figure in known if figure.paper is not None]
    if paper:
        axes.plot(*zip(*paper, strict=True), linestyle="none", marker="*", markersize=9, color=colour)


def _place(row: Row) -> float:
    return float(row.entry.labels[-1])
