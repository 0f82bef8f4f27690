"""A trace: a row per stage, its batches, and in each what every layer did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from launch.output.pictures.rows import SIDE, arrows, stage_axis, strip
from launch.output.pictures.style import WAITING, WIDTH, styled

_TALLEST = 6.0  # inches of all rows
_ROW = 0.72  # inches of a row, where there is room
_BOX, _PART, _WAIT = 0.3, 0.22, 0.1  # half the height of a batch, a part of it and a wait, in rows
_LETTER = 0.062  # inches of a letter above a box
_THINNEST = 0.0008  # of the picture's width: what is shorter is not drawn
_LEGEND = 6  # kinds of parts that the legend has room for in a line
_WITH_WORDS = 0.3  # inches that a row needs for arrows and batches' numbers

PARTS = {  # what a stage does with a batch, and between two
    "forward": ("forward", "#9AD1BC"),
    "send": ("send", "0.25"),
    "loss": ("loss", "#CC79A7"),
    "backward": ("backward", "#6FA8D0"),
    "update": ("update", "#DB9467"),
    "copy": ("copy", "0.6"),
    "validate": ("validation", "#CFC3E3"),
    "checkpoint": ("checkpoint", "#7B5EA7"),
    **{kind: look for kind, look in WAITING.items() if kind != "other"},
}


@dataclass
class TracedStage:
    """A stage's row. Moments are in milliseconds.

    Attributes:
        name: may have two lines.
        batches: number, begin and end of each.
        parts: kind (of ``PARTS``), begin and end of each.
        sent: by the batch's number when it was sent on, and when the next stage began on it.
    """

    name: str
    batches: list[tuple[int, float, float]] = field(default_factory=list)
    parts: list[tuple[str, float, float]] = field(default_factory=list)
    sent: dict[int, tuple[float, float]] = field(default_factory=dict)


@styled
def trace(stages: Sequence[TracedStage], *, begin: float, end: float, title: str) -> Figure:
    """What stages, first one first, did between two moments."""
    row = min(_ROW, _TALLEST / len(stages))
    figure = Figure(figsize=(WIDTH, row * len(stages) + 1.25), layout="constrained")
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    axes = figure.subplots()
    within = [_within(stage, begin, end) for stage in stages]
    edges = [strip(left, right, row, _BOX) for row, one in enumerate(within) for _, left, right in one.batches]
    axes.add_collection(PolyCollection(edges, gid="batches", facecolor="none", edgecolor="0.35", linewidth=0.7))
    handles = []
    for kind, (meaning, colour) in PARTS.items():
        half = _WAIT if kind in WAITING else _PART
        found = [strip(a, b, row, half) for row, one in enumerate(within) for what, a, b in one.parts if what == kind]
        if found:
            axes.add_collection(PolyCollection(found, gid=kind, facecolor=colour, linewidth=0))
            handles.append(Patch(color=colour, label=meaning))
    if row > _WITH_WORDS:
        arrows(axes, [stage.sent.values() for stage in within[:-1]], _BOX)
        for number, one in enumerate(within):
            _numbers(axes, one, number, end - begin)
    stage_axis(axes, [stage.name for stage in stages], row, end - begin, "ms")
    columns = max(1, len(handles) if len(handles) <= _LEGEND else -(-len(handles) // 2))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure


def _within(stage: TracedStage, begin: float, end: float) -> TracedStage:
    """What of a row lies between two moments, counted from the first one."""
    thinnest = _THINNEST * (end - begin)

    def cut(one: tuple[Any, float, float]) -> tuple[Any, float, float]:
        return one[0], max(0.0, one[1] - begin), min(end, one[2]) - begin

    batches = [cut(one) for one in stage.batches if one[2] > begin and one[1] < end]
    parts = [cut(one) for one in stage.parts if min(end, one[2]) - max(begin, one[1]) >= thinnest]
    sent = {n: (a - begin, b - begin) for n, (a, b) in stage.sent.items() if a >= begin and b <= end}
    return TracedStage(stage.name, batches, parts, sent)


def _numbers(axes: Axes, stage: TracedStage, row: int, length: float) -> None:
    """The batches' numbers above their boxes, as long as there is room."""
    for number, left, right in stage.batches:
        inches = (right - left) / length * (WIDTH - SIDE)
        for text in (f"batch {number}", str(number)):
            if inches > _LETTER * len(text):
                axes.text(left, row - _BOX - 0.04, text, ha="left", va="bottom", fontsize=6.5, in_layout=False)
                break
