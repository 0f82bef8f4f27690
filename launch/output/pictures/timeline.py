"""The schedule as it was measured: a row per stage, a box per batch, arrows where activations pass on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from launch.output.pictures.rows import SIDE, arrows, stage_axis, strip
from launch.output.pictures.style import GREEN, WAITING, WIDTH, styled
from launch.output.timeline import Step, Window, passings

_TALLEST = 5.0  # inches of a panel's rows
_ROW = 0.62  # inches of a row, where there is room
_BOX = 0.27  # half the height of a box, in rows
_WAIT = 0.1  # half the height of a stretch of waiting, in rows
_LETTER = 0.058  # inches of a letter in a box
_FILL, _EDGE = "#BFE3D6", GREEN
_WITH_ARROWS = _WITH_NUMBERS = 0.2  # inches that a row needs for them
_SHORTEST = 0.004  # of a window: shorter waiting is not drawn


@styled
def timeline(windows: Sequence[Window], titles: Sequence[str], stages: Sequence[str], *, title: str) -> Figure:
    """A panel per window, each on a scale of its own that begins at 0.

    Args:
        windows: at least one.
        titles: of the panels.
        stages: names of the rows, first stage first; may have two lines.
    """
    row = min(_ROW, _TALLEST / len(stages))
    figure = Figure(figsize=(WIDTH, len(windows) * (row * len(stages) + 0.75) + 0.65), layout="constrained")
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    seen: set[str] = set()
    for axes, window, name in zip(figure.subplots(len(windows), 1, squeeze=False).flat, windows, titles, strict=True):
        seen |= _panel(axes, window, stages, row)
        axes.set_title(name, loc="left", fontsize=8)
    work = Patch(facecolor=_FILL, edgecolor=_EDGE, linewidth=0.7, label="computing, copying")
    waits = [Patch(color=colour, label=meaning) for kind, (meaning, colour) in WAITING.items() if kind in seen]
    figure.legend(handles=[work, *waits], loc="outside lower center", ncols=1 + len(waits))
    return figure


def _panel(axes: Axes, window: Window, stages: Sequence[str], height: float) -> set[str]:
    """Draws a window, rows being so many inches high. Returns the kinds of waiting in it."""
    length = window.end - window.begin
    scale, unit = (1000.0, "ms") if length < 2 else (1.0, "s")

    def at(moment: float) -> float:
        return (moment - window.begin) * scale

    rows = list(enumerate(window.stages))
    boxes = [strip(at(step.begin), at(step.end), row, _BOX) for row, steps in rows for step in steps]
    looks: Any = {"facecolor": _FILL, "edgecolor": _EDGE, "linewidth": 0.7}
    axes.add_collection(PolyCollection(boxes, gid="boxes", **looks))
    seen = set()
    for kind, (_, colour) in WAITING.items():
        waits = [
            strip(at(begin), at(end), row, _WAIT)
            for row, steps in rows
            for step in steps
            for begin, end in step.waited(kind)
            if min(end, window.end) - max(begin, window.begin) >= _SHORTEST * length
        ]
        if waits:
            axes.add_collection(PolyCollection(waits, gid=kind, facecolor=colour, linewidth=0))
            seen.add(kind)
    if height > _WITH_ARROWS:
        passed = [
            [
                (at(departure), at(arrival))
                for departure, arrival in passings(upper, lower)
                if window.begin <= departure and arrival <= window.end
            ]
            for upper, lower in pairwise(window.stages)
        ]
        arrows(axes, passed, _BOX)
    if height > _WITH_NUMBERS:
        for row, steps in rows:
            for step in steps:
                _number(axes, step, row, max(0.0, at(step.begin)), min(at(step.end), at(window.end)), at(window.end))
    stage_axis(axes, stages, height, length * scale, unit)
    return seen


def _number(axes: Axes, step: Step, row: int, left: float, right: float, length: float) -> None:
    """The batch's number in the part of its box that is seen, as long as there is room."""
    inches = (right - left) / length * (WIDTH - SIDE)
    for text in (f"batch {step.batch + 1}", str(step.batch + 1)):
        if inches > _LETTER * (len(text) + 1):
            middle = ((left + right) / 2, row)
            axes.text(*middle, text, ha="center", va="center_baseline", fontsize=7, in_layout=False)
            return
