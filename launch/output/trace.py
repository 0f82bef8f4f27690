"""trace.json: some steps of every stage as Chrome and Perfetto read it, a row for each stage and arrows between them.

Format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launch.output.live import numbers
from pipeline.config.run_spec import RunSpec
from pipeline.telemetry.trace import Slice

FILE = "trace.json"

_NAMES = {
    "wait_in": "wait for input",
    "wait_out": "wait for room in the next queue",
    "sync": "wait for a version",
    "copy": "copy",
    "step": "step",
}


class Trace:
    """The slices of a run's stages, as they are reported."""

    def __init__(self) -> None:
        self._slices: dict[int, list[Slice]] = {}

    def add(self, stage: int, slices: Sequence[Slice]) -> None:
        """Takes some of a stage's (0-based)."""
        if slices:
            self._slices.setdefault(stage, []).extend(slices)

    def write(self, folder: Path, spec: RunSpec) -> Path | None:
        """Writes the file, if there is anything. Raises OSError where that cannot be."""
        if not self._slices:
            return None
        part = folder / f".{FILE}.part"
        part.write_text(json.dumps({"traceEvents": list(events(spec, self._slices)), "displayTimeUnit": "ms"}))
        part.replace(folder / FILE)
        return folder / FILE


def events(spec: RunSpec, slices: dict[int, list[Slice]]) -> Iterator[dict[str, Any]]:
    """Chrome's events: microseconds from the first slice on."""
    origin = min(one.begin for found in slices.values() for one in found)

    def at(moment: float) -> float:
        return round((moment - origin) * 1e6, 3)

    for stage, found in sorted(slices.items()):
        layers = spec.stages[stage]
        name = f"stage {stage + 1}, layer{'s' if len(layers) > 1 else ''} {numbers(layers)}"
        yield {"ph": "M", "name": "process_name", "pid": stage, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": stage, "args": {"sort_index": stage}}
        for one in sorted(found, key=lambda one: (one.begin, -one.end)):
            what = _NAMES.get(one.name, one.name)
            shown = f"batch {one.step + 1}" if one.name == "step" else what
            if one.layer is not None:
                shown = f"{what}, layer {one.layer + 1}"
            yield {
                "ph": "X",
                "name": shown,
                "cat": one.name,
                "pid": stage,
                "tid": 0,
                "ts": at(one.begin),
                "dur": round((one.end - one.begin) * 1e6, 3),
                "args": {"step": one.step + 1},
            }
    yield from _arrows(slices, at)


def _arrows(slices: dict[int, list[Slice]], at: Any) -> Iterator[dict[str, Any]]:
    """From where a stage has sent a batch to where the next one begins on it."""
    for stage, found in sorted(slices.items()):
        begun = {one.step: one.begin for one in slices.get(stage + 1, ()) if one.name == "step"}
        sent = {one.step: one for one in found if one.name == "send"}  # the last layer's comes last
        for step, one in sorted(sent.items()):
            if step in begun:
                arrow = {"name": "activations", "cat": "flow", "id": f"{stage}-{step}", "tid": 0}
                yield {**arrow, "ph": "s", "pid": stage, "ts": at(one.begin)}
                yield {**arrow, "ph": "f", "bp": "e", "pid": stage + 1, "ts": at(begun[step])}
