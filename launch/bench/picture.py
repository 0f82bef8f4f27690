"""The benchmark in one picture: every row's speed with its spread and ideal, and where each device's time went."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.bench.figures import Device, Figures
from launch.output.pictures.style import BLUE, GREEN, ORANGE, WAITING, WIDTH, styled

_ROW = 0.27  # inches
_KINDS = {
    "busy": ("busy", GREEN),
    "wait_in": WAITING["wait_in"],
    "wait_out": WAITING["wait_out"],
    "copy": ("copy", "#CC79A7"),
    "communication": ("communication and waiting for others", ORANGE),
    "sync": WAITING["sync"],
    "other": WAITING["other"],
}


@styled
def draw(title: str, rows: Sequence[Figures]) -> Figure:
    """The rows that were measured; at least one."""
    measured = [row for row in rows if row.images_per_second is not None]
    bars = [(row, device) for row in measured for device in row.devices]
    heights = [len(measured), len(bars)]
    figure = Figure(figsize=(WIDTH, _ROW * sum(heights) + 2.0), layout="constrained")
    speeds, times = figure.subplots(2, 1, height_ratios=heights)
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    _speeds(speeds, measured)
    _times(times, bars)
    return figure


def _speeds(axes: Axes, rows: Sequence[Figures]) -> None:
    positions = range(len(rows))
    middle = [row.images_per_second or 0.0 for row in rows]
    spread = [
        [speed - (row.low or speed) for row, speed in zip(rows, middle, strict=True)],
        [(row.high or speed) - speed for row, speed in zip(rows, middle, strict=True)],
    ]
    colours = [BLUE if row.family == "local" else ORANGE for row in rows]
    axes.barh(positions, middle, color=colours, height=0.7)
    axes.errorbar(middle, positions, xerr=spread, fmt="none", ecolor="0.2", elinewidth=0.8, capsize=2)
    ideals = [(row.ideal.images_per_second, position) for position, row in enumerate(rows) if row.ideal is not None]
    if ideals:
        axes.plot(*zip(*ideals, strict=True), linestyle="none", marker="|", color="black", markersize=9, label="ideal")
    axes.barh([0], [0], color=BLUE, label="local learning")
    axes.barh([0], [0], color=ORANGE, label="backpropagation")
    _name_rows(axes, [row.label for row in rows])
    axes.set_xlim(left=0)
    axes.set_xlabel("images/s (median; line: range of the rounds)")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0)


def _times(axes: Axes, bars: Sequence[tuple[Figures, Device]]) -> None:
    begun = [0.0] * len(bars)
    for kind, (meaning, colour) in _KINDS.items():
        widths = [100 * device.shares.get(kind, 0.0) for _, device in bars]
        if any(widths):
            axes.barh(range(len(bars)), widths, left=begun, color=colour, height=0.8, label=meaning)
        begun = [left + width for left, width in zip(begun, widths, strict=True)]
    _name_rows(axes, [f"{row.label}, {device.name}" if len(row.devices) > 1 else row.label for row, device in bars])
    axes.set_xlim(0, 100)
    axes.set_xlabel("time of each device, %")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="x")
