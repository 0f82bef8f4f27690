"""Flame graphs of a profile, for speedscope.app or any other reader of its files.

Format: https://www.speedscope.app/file-format-schema.json
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.telemetry.operations import Operation, unpacked
from pipeline.telemetry.trace import STEP, Slice, StageTrace

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"

Stack = tuple[str, ...]


def flame_graphs(title: str, names: Mapping[int, str], traces: Mapping[int, StageTrace]) -> dict[str, Any]:
    """A speedscope file with a graph for each stage, and one more of its kernels where it has a GPU.

    Args:
        names: of the stages.
    """
    frames: dict[str, int] = {}
    profiles = []
    for stage, trace in sorted(traces.items()):
        if trace.profile is None:
            continue
        operations, _ = unpacked(trace.profile)
        for what, spent in _graphs(trace.slices, operations):
            profiles.append(_profile(f"{names[stage]}{what}", spent, frames))
    return {
        "$schema": _SCHEMA,
        "name": title,
        "shared": {"frames": [{"name": name} for name in frames]},
        "profiles": profiles,
    }


def _graphs(slices: Sequence[Slice], found: Sequence[Operation]) -> Iterator[tuple[str, dict[Stack, int]]]:
    host = [one for one in found if not one.on_gpu]
    kernels = [one for one in found if one.on_gpu]
    spent, launched_in = stacks(slices, host)
    yield "", spent
    if kernels:
        yield ": kernels", by_launch(kernels, launched_in)


def stacks(slices: Sequence[Slice], found: Sequence[Operation]) -> tuple[dict[Stack, int], dict[int, Stack]]:
    """Nanoseconds that a stage's host spent in each stack of what was under way, while it worked on what was profiled.

    Returns also in which stack each kernel was launched.
    """
    if not found:
        return {}, {}
    begin = min(one.begin for one in found)
    blocks = [
        _Block(_shown(one), round(one.begin * 1e9), round(one.end * 1e9))
        for one in slices
        if one.end * 1e9 > begin and one.name != "profiler"
    ]
    blocks += [_Block(one.name, one.begin, one.end, one.launch) for one in found]
    spent: dict[Stack, int] = {}
    launched_in: dict[int, Stack] = {}
    open_: list[_Block] = []

    def spend(since: int, until: int) -> None:
        if open_ and until > since:
            stack = tuple(one.name for one in open_)
            spent[stack] = spent.get(stack, 0) + until - since

    now = begin
    for block in sorted(blocks, key=lambda one: (one.begin, -one.end)):
        while open_ and open_[-1].end <= block.begin:
            spend(now, open_[-1].end)
            now = max(now, open_.pop().end)
        spend(now, block.begin)
        now = max(now, block.begin)
        open_.append(block)
        if block.launch is not None:
            launched_in[block.launch] = tuple(one.name for one in open_)
    while open_:
        spend(now, open_[-1].end)
        now = max(now, open_.pop().end)
    return spent, launched_in


def by_launch(kernels: Sequence[Operation], launched_in: Mapping[int, Stack]) -> dict[Stack, int]:
    """Nanoseconds of each kernel, below what launched it."""
    spent: dict[Stack, int] = {}
    for one in kernels:
        stack = (*launched_in.get(-1 if one.launch is None else one.launch, ()), one.name)
        spent[stack] = spent.get(stack, 0) + one.end - one.begin
    return spent


@dataclass(frozen=True)
class _Block:
    name: str
    begin: int
    end: int
    launch: int | None = None


def _shown(one: Slice) -> str:
    """A slice's name, the same for all batches."""
    if one.name == STEP:
        return "batch"
    return one.name.replace("_", " ") if one.layer is None else f"{one.name}, layer {one.layer + 1}"


def _profile(name: str, spent: Mapping[Stack, int], frames: dict[str, int]) -> dict[str, Any]:
    """One of the file's graphs. Frames that it names for the first time are added."""
    samples = [[frames.setdefault(frame, len(frames)) for frame in stack] for stack in spent]
    weights = list(spent.values())
    return {
        "type": "sampled",
        "name": name,
        "unit": "nanoseconds",
        "startValue": 0,
        "endValue": sum(weights),
        "samples": samples,
        "weights": weights,
    }
