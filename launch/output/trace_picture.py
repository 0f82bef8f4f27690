"""trace.png and trace.svg: a stretch of trace.json as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.output.trace import TRACE
from pipeline.telemetry.trace import STEP

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure

    from launch.output.pictures import TracedStage

_BATCHES = 4  # of the slowest stage in the picture


@dataclass
class _Row:
    """A stage's events. Moments are in microseconds."""

    name: str = ""
    slices: list[dict[str, Any]] = field(default_factory=list)
    arrows: dict[int, list[float]] = field(default_factory=dict)  # by the batch's number


def trace_figure(run: Path) -> Figure:
    """The trace in a run's folder. Raises OSError where it cannot be read."""
    from launch.output import pictures  # noqa: PLC0415 (as above)

    rows = _rows(json.loads((run / TRACE).read_text())["traceEvents"])
    stages = [_stage(row, rows[number + 1] if number + 1 < len(rows) else None) for number, row in enumerate(rows)]
    begin, end = stretch(stages)
    numbers = [number for stage in stages for number, left, right in stage.batches if right > begin and left < end]
    title = f"batches {min(numbers)} to {max(numbers)} of the run, as traced" if numbers else "no batch was traced"
    return pictures.trace(stages, begin=begin, end=end, title=title)


def stretch(stages: Sequence[TracedStage]) -> tuple[float, float]:
    """The moments between which a picture shows the most: some batches from where every stage has begun, as long as all
    go on; where they do not work at the same time, all that there is."""
    rows = [stage.batches for stage in stages if stage.batches]
    if not rows:
        return 0.0, 1.0
    begin, end = max(row[0][1] for row in rows), min(row[-1][2] for row in rows)
    pace = max((row[-1][2] - row[0][1]) / len(row) for row in rows)
    if end - begin < pace:
        return min(row[0][1] for row in rows), max(row[-1][2] for row in rows)
    return begin, min(end, begin + _BATCHES * pace)


def _rows(events: Sequence[dict[str, Any]]) -> list[_Row]:
    """The stages' events, first stage first."""
    rows: dict[int, _Row] = {}
    for event in events:
        row = rows.setdefault(event["pid"], _Row())
        match event["ph"]:
            case "M" if event["name"] == "process_name":
                row.name = event["args"]["name"]
            case "X" if event["tid"] == 0:
                row.slices.append(event)
            case "s" | "t" | "f":
                row.arrows.setdefault(event["id"], []).append(event["ts"])
    return [row for _, row in sorted(rows.items())]


def _stage(row: _Row, below: _Row | None) -> TracedStage:
    from launch.output.pictures import PARTS, TracedStage  # noqa: PLC0415 (as above)

    stage = TracedStage(row.name.replace(", ", "\n", 1))
    for event in row.slices:
        begin, end = event["ts"] / 1e3, (event["ts"] + event["dur"]) / 1e3
        if event["cat"] == STEP:
            stage.batches.append((event["args"]["step"], begin, end))
        elif event["cat"] in PARTS:
            stage.parts.append((event["cat"], begin, end))
    if below is not None:
        for number, moments in row.arrows.items():
            if number in below.arrows:
                stage.sent[number] = (max(moments) / 1e3, min(below.arrows[number]) / 1e3)
    return stage
