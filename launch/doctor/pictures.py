"""The report's pictures: throughput by configuration, memory by depth, accuracy by second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.output.pictures.style import BLUE, GREEN, GREY, ORANGE, WIDTH, percent_axis, styled

_BAR = 0.22  # inches
_COMPILED = {"off": BLUE, "on": GREEN}
_MEMORY = {
    "stage": ("a stage of one layer", BLUE),
    "serial": ("serial loop", GREEN),
    "backprop": ("backprop", ORANGE),
}
_LINES = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", GREY)


@styled
def throughput(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Images per second of every way to make a step, a chart for each net.

    Args:
        rows: those of costs.json that were measured; at least one.
    """
    nets = list(dict.fromkeys(row["net"] for row in rows))
    counts = [sum(row["net"] == net for row in rows) for net in nets]
    size = (WIDTH, _BAR * sum(counts) + 0.75 * len(nets) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    every = figure.subplots(len(nets), 1, height_ratios=counts, squeeze=False)[:, 0]
    for axes, net in zip(every, nets, strict=True):
        _bars(axes, [row for row in rows if row["net"] == net])
        axes.set_title(net, loc="left")
    every[-1].set_xlabel("images/s")
    return figure


def _bars(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    speeds = [row["batch"] / sorted(row["cost"]["seconds"])[len(row["cost"]["seconds"]) // 2] for row in rows]
    colours = [ORANGE if row["learning"] == "backprop" else _COMPILED[row["compile"]] for row in rows]
    axes.barh(range(len(rows)), speeds, color=colours, height=0.7)
    axes.set_yticks(range(len(rows)), [_way(row) for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.grid(axis="x")


def _way(row: Mapping[str, Any]) -> str:
    how = "backprop" if row["learning"] == "backprop" else {"off": "eager", "on": "compiled"}[row["compile"]]
    return f"{row['precision']}, {how}" + (", graphs" if row["graphs"] == "on" else "")


@styled
def memory(peaks: Sequence[Mapping[str, Any]]) -> Figure:
    """Peak memory by depth, a line for each kind of process.

    Args:
        peaks: those of memory.json that were measured; at least one.
    """
    figure = Figure(figsize=(WIDTH / 2, 2.5), layout="constrained")
    axes = figure.subplots()
    for what, (title, colour) in _MEMORY.items():
        points = sorted((peak["depth"], peak["bytes"] / 2**20) for peak in peaks if peak["what"] == what)
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", color=colour, label=title)
    axes.set_xlabel("layers")
    axes.set_ylabel("peak MiB")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.legend()
    return figure


@styled
def accuracy(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Validation accuracy by second, a line for each run.

    Args:
        runs: by title the points of its learning.json; each has some.
    """
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    axes = figure.subplots()
    for number, (title, points) in enumerate(runs.items()):
        seconds, shares = ([point[name] for point in points] for name in ("seconds", "accuracy"))
        axes.plot(seconds, shares, color=_LINES[number % len(_LINES)], label=title)
    percent_axis(axes, "validation accuracy", [point["accuracy"] for points in runs.values() for point in points])
    axes.set_xlabel("seconds")
    axes.set_xlim(left=0)
    axes.grid(axis="y")
    axes.legend()
    return figure
