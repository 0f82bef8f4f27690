"""trace.json: some steps of every stage as Chrome and Perfetto read it, a row for each stage and arrows between them.

Format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launch.output.flame import flame_graphs
from launch.output.live import numbers
from launch.output.whole_file import write_whole
from pipeline.config.run_spec import RunSpec
from pipeline.telemetry.operations import unpacked
from pipeline.telemetry.trace import STEP, Slice, StageTrace

TRACE, FLAME = "trace.json", "flame.speedscope.json"
TRAINING_STEPS = "training steps"
"""Under this name the file's ``otherData`` have which ones are traced, from 1."""

Event = dict[str, Any]

_NAMES = {
    "wait_in": "wait for input",
    "wait_out": "wait for room in the next queue",
    "sync": "wait for a version",
    "profiler": "PyTorch's profiler begins",
    "validate": "validation",
}
_BATCHES, _OPERATORS = "batches", "operators"


class Traces:
    """Puts the stages' traces of the same steps together, and writes them into a run's folder."""

    def __init__(self) -> None:
        self._told: dict[int, dict[int, StageTrace]] = {}  # by the first step, then by stage

    def add(self, spec: RunSpec, trace: StageTrace) -> dict[int, StageTrace] | None:
        """Takes a stage's. Returns those of all stages once they are there."""
        of_steps = self._told.setdefault(trace.steps.start, {})
        of_steps[trace.stage] = trace
        if len(of_steps) < spec.num_stages:
            return None
        self._told.clear()  # what else there is, is of an attempt at the run that failed
        return of_steps

    def rest(self) -> dict[int, StageTrace] | None:
        """Of the newest steps of which not every stage has told, those that have; None where there are none."""
        return self._told.pop(max(self._told)) if self._told else None


def write(folder: Path, spec: RunSpec, traces: Mapping[int, StageTrace]) -> Path:
    """Writes the stages' traces, and flame graphs where they were profiled. Raises OSError where that cannot be."""
    _write(folder / TRACE, document(spec, traces))
    if any(trace.profile is not None for trace in traces.values()):
        names = {stage: _name(spec, stage) for stage in traces}
        _write(folder / FLAME, flame_graphs(spec.settings.preset, names, traces))
    return folder / TRACE


def _write(file: Path, values: Any) -> None:
    write_whole(file, json.dumps(values, ensure_ascii=False))  # Perfetto shows escapes as they are


def document(spec: RunSpec, traces: Mapping[int, StageTrace]) -> dict[str, Any]:
    """Chrome's trace: events, with times in microseconds from the first slice on by the launching process's clock."""
    origin = min((one.begin - trace.offset.seconds for trace in traces.values() for one in trace.slices), default=0.0)
    told: list[Event] = []
    left_out: dict[str, int] = {}
    rows = {stage: _Row(stage, trace, origin) for stage, trace in sorted(traces.items())}
    for stage, row in rows.items():
        told += _named(_name(spec, stage), row.process)
        told += row.slices()
        told += row.queue()
        if row.trace.profile is not None:
            operations, more = row.operations()
            told += operations
            left_out |= {f"stage {stage + 1}": more} if more else {}
    told += _arrows(rows)
    steps = [step for trace in traces.values() for step in trace.steps]
    about = {
        TRAINING_STEPS: f"{min(steps, default=-1) + 1} to {max(steps, default=-1) + 1}",
        "clocks": {
            f"stage {stage + 1}": {
                "ahead of the launching process by, in ms": round(1e3 * trace.offset.seconds, 3),
                "uncertain by, in ms": round(1e3 * trace.offset.uncertainty, 3),
            }
            for stage, trace in sorted(traces.items())
        },
        **({"operators left out": left_out} if left_out else {}),
    }
    return {"traceEvents": told, "displayTimeUnit": "ms", "otherData": about}


def _name(spec: RunSpec, stage: int) -> str:
    layers = spec.stages[stage]
    return f"stage {stage + 1}, layer{'s' if len(layers) > 1 else ''} {numbers(layers)}"


def _named(name: str, process: int) -> Iterator[Event]:
    yield {"ph": "M", "name": "process_name", "pid": process, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": process, "args": {"sort_index": process}}
    yield _thread(process, 0, _BATCHES)


def _thread(process: int, number: int, name: str) -> Event:
    return {"ph": "M", "name": "thread_name", "pid": process, "tid": number, "args": {"name": name}}


class _Row:
    """A stage's part of the trace."""

    def __init__(self, stage: int, trace: StageTrace, origin: float) -> None:
        self.process, self.trace, self._origin = stage + 1, trace, origin + trace.offset.seconds

    def at(self, moment: float) -> float:
        """Microseconds."""
        return round((moment - self._origin) * 1e6, 3)

    def slices(self) -> Iterator[Event]:
        for one in self.trace.slices:
            lasting = self._lasting(_shown(one), one.name, 0, self.at(one.begin), self.at(one.end))
            yield {**lasting, "args": {"step": one.step + 1}}

    def queue(self) -> Iterator[Event]:
        for moment, messages in self.trace.queue:
            at = self.at(moment)
            yield {"ph": "C", "name": "queue", "pid": self.process, "ts": at, "args": {"messages": messages}}

    def operations(self) -> tuple[list[Event], int]:
        """What PyTorch's profiler saw, a thread for each of its own, and how much of it is left out."""
        assert self.trace.profile is not None, "it was profiled"
        found, left_out = unpacked(self.trace.profile)
        threads = {name: number for number, name in enumerate(dict.fromkeys(one.thread for one in found), start=1)}
        told = [
            _thread(self.process, number, f"{_OPERATORS}, {name}" if name.startswith("thread") else name or _OPERATORS)
            for name, number in threads.items()
        ]
        origin = round(self._origin * 1e9)
        for one in found:
            begin, end = ((moment - origin) / 1e3 for moment in (one.begin, one.end))
            told.append(self._lasting(one.name, one.kind, threads[one.thread], begin, end))
        return told, left_out

    def _lasting(self, name: str, kind: str, thread: int, begin: float, end: float) -> Event:
        event = {"ph": "X", "name": name, "cat": kind, "pid": self.process, "tid": thread, "ts": begin}
        return {**event, "dur": round(end - begin, 3)}

    def inside(self, name: str) -> dict[int, tuple[Slice, Slice]]:
        """The first and the last of the slices of a name in each step."""
        found: dict[int, tuple[Slice, Slice]] = {}
        for one in self.trace.slices:
            if one.name == name:
                found[one.step] = (found.get(one.step, (one, one))[0], one)
        return found

    def arrow(self, how: str, one: Slice) -> Event:
        """A batch's arrow begins ("s"), goes on ("t") or ends ("f") with a slice's beginning."""
        event = {"ph": how, "name": "batch", "cat": "flow", "id": one.step + 1, "pid": self.process, "tid": 0}
        return {**event, "ts": self.at(one.begin), **({"bp": "e"} if how == "f" else {})}


def _shown(one: Slice) -> str:
    if one.name == STEP:
        return f"batch {one.step + 1}"
    what = _NAMES.get(one.name, one.name)
    return what if one.layer is None else f"{what}, layer {one.layer + 1}"


def _arrows(rows: Mapping[int, _Row]) -> Iterator[Event]:
    """An arrow for each batch, from where a stage has sent it to where the next one begins on it, and so on."""
    forward = {stage: row.inside("forward") for stage, row in rows.items()}
    sent = {stage: row.inside("send") for stage, row in rows.items()}
    last = max(rows, default=0)
    for stage, row in rows.items():
        for step, (first, _) in forward[stage].items():
            if stage > 0 and step in sent.get(stage - 1, ()):
                yield row.arrow("f" if stage == last else "t", first)
            if step in sent[stage] and step in forward.get(stage + 1, ()):
                yield row.arrow("s" if stage == 0 else "t", sent[stage][step][1])
