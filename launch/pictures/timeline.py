"""The schedule as it was measured: a row per stage, a box per batch, arrows where activations pass on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from launch.pictures.style import GREEN, WAITING, WIDTH, styled
from launch.timeline import Step, Window

_TALLEST = 9.0  # inches of a panel's rows
_ROW = 0.62  # inches of a row, where there is room
_BOX = 0.27  # half the height of a box, in rows
_WAIT = 0.1  # half the height of a stretch of waiting, in rows
_LETTER = 0.058  # inches of a letter in a box
_SIDE = 1.0  # inches left of the boxes, for the stages' names
_FILL, _EDGE = "#BFE3D6", GREEN
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


def _panel(axes: Axes, window: Window, stages: Sequence[str], row: float) -> set[str]:
    """Draws a window. Returns the kinds of waiting in it."""
    length = window.end - window.begin
    scale, unit = (1000.0, "ms") if length < 2 else (1.0, "s")

    def at(moment: float) -> float:
        return (moment - window.begin) * scale

    seen: set[str] = set()
    for number, steps in enumerate(window.stages):
        for step in steps:
            seen |= _waiting(axes, step, number, at, least=_SHORTEST * length)
            _box(axes, step, number, at, window, row)
    if row > 0.3:
        for number, (upper, lower) in enumerate(zip(window.stages[:-1], window.stages[1:], strict=True)):
            _arrows(axes, upper, lower, number, at, window)
    axes.set_xlim(0, length * scale)
    axes.set_ylim(len(stages) - 0.5, -0.5)
    axes.set_yticks(range(len(stages)), stages, fontsize=7.5 if row > 0.3 else 5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel(unit, labelpad=1)
    return seen


def _waiting(axes: Axes, step: Step, row: int, at: Callable[[float], float], *, least: float) -> set[str]:
    """The stretches of waiting before a step, thinner than a box."""
    seen, moment = set(), step.since
    for kind, seconds in step.waits.items():
        if seconds >= least:
            begin, end = at(moment), at(moment + seconds)
            looks: Any = {"facecolor": WAITING[kind][1], "linewidth": 0, "gid": f"{kind} {row + 1}"}
            axes.add_patch(Rectangle((begin, row - _WAIT), end - begin, 2 * _WAIT, **looks))
            seen.add(kind)
        moment += seconds
    return seen


def _box(axes: Axes, step: Step, row: int, at: Callable[[float], float], window: Window, height: float) -> None:
    """A batch's box, with its number where there is room in the part that is seen."""
    begin, end = at(step.begin), at(step.end)
    looks: Any = {"facecolor": _FILL, "edgecolor": _EDGE, "linewidth": 0.7, "gid": f"batch {step.batch + 1} {row + 1}"}
    axes.add_patch(Rectangle((begin, row - _BOX), end - begin, 2 * _BOX, **looks))
    left, right = max(begin, 0.0), min(end, at(window.end))
    inches = (right - left) / at(window.end) * (WIDTH - _SIDE)
    for text in (f"batch {step.batch + 1}", str(step.batch + 1)):
        if inches > _LETTER * (len(text) + 1) and height > 0.15:
            axes.text((left + right) / 2, row, text, ha="center", va="center_baseline", fontsize=7, clip_on=True)
            return


def _arrows(
    axes: Axes, upper: Sequence[Step], lower: Sequence[Step], row: int, at: Callable[[float], float], window: Window
) -> None:
    """From each batch's box to its box in the next row.

    An arrow ends where the next stage begins on the batch. It leaves its box then, or where the box ends if that is
    earlier: the moment of sending, in the middle of the step, is not measured.
    """
    taken = {step.batch: step for step in lower}
    for step in upper:
        if step.batch not in taken:
            continue
        arrival = taken[step.batch].begin
        departure = min(max(arrival, step.begin), step.end)
        if not (window.begin <= departure and arrival <= window.end):
            continue
        axes.add_patch(
            FancyArrowPatch(
                (at(departure), row + _BOX),
                (at(arrival), row + 1 - _BOX),
                arrowstyle="-|>",
                mutation_scale=6,
                shrinkA=0,
                shrinkB=0,
                linewidth=0.8,
                color="0.25",
                gid=f"arrow {step.batch + 1} {row + 1}",
            )
        )
