"""What keeps a run from going as fast as it could and lies outside of its partition: sentences that say what to do.

Pure: figures go in, a sentence comes out, or None where all is well. Sentences name settings in backquotes.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.telemetry.machine import MachineReading

_WAITED = 0.15  # share of the time for which a run wants cores in which it does not get them
_OTHERS = 0.3  # cores that others use at least where they are told of
_STOLEN = 0.1  # share of a virtual machine's time
_SWAPPED = 1 << 20  # bytes a second that come back from swap
_SLOWER, _STEADY = 1.5, 1.2  # times as long as usual: what a straggler takes, and what the others may


@dataclass(frozen=True, kw_only=True)
class MachineLoad:
    """What a machine did over some seconds.

    Attributes:
        cores: that it has.
        others: cores that others than the run used.
        waited: of the time for which the run's processes wanted a core, the share in which they waited for one.
        stolen: share of the cores' time that a virtual machine's host gave to others.
        swapped_in: bytes a second that came back from swap.
    """

    name: str
    cores: int
    others: float
    waited: float
    stolen: float
    swapped_in: float


def load_between(before: Sequence[MachineReading], now: Sequence[MachineReading]) -> MachineLoad | None:
    """What one machine did between two readings of some of the run's processes there.

    None where no process is in both, or one has not read anew.
    """
    ended = {one.process: one for one in now}
    pairs = [(one, ended[one.process]) for one in before if one.process in ended]
    if not pairs or any(end.at <= begin.at for begin, end in pairs):
        return None
    first, last = max(pairs, key=lambda pair: pair[1].at - pair[0].at)
    seconds = last.at - first.at
    # Each process reads when it is asked: over stretches of its own, some of them half as long as others.
    own = sum((end.own - begin.own) / (end.at - begin.at) for begin, end in pairs)
    delayed = sum(((end.delayed or 0.0) - (begin.delayed or 0.0)) / (end.at - begin.at) for begin, end in pairs)
    return MachineLoad(
        name=last.name,
        cores=last.cores,
        others=max(0.0, (last.busy - first.busy) / seconds - own),
        waited=max(0.0, delayed) / (own + delayed) if own + delayed > 0 else 0.0,
        stolen=(last.stolen - first.stolen) / seconds / max(1, last.cores),
        swapped_in=(last.swapped_in - first.swapped_in) / seconds,
    )


def busy_machine(load: MachineLoad) -> str | None:
    """Others take the cores that the run wants."""
    if load.stolen > _STOLEN:
        return (
            f"{load.name} is a busy machine: its host gives {load.stolen:.0%} of its cores' time to other virtual "
            "machines; speeds and shares of time are theirs as well. Run where cores are not shared"
        )
    if load.waited > _WAITED and load.others > _OTHERS:
        return (
            f"{load.name} is a busy machine: other programs use {load.others:.1f} of its {load.cores} cores, and the "
            f"run waits for a core {load.waited:.0%} of the time for which it wants one. End them, or give fewer "
            "`stages`"
        )
    return None


def swapping(load: MachineLoad) -> str | None:
    """Memory is short."""
    if load.swapped_in < _SWAPPED:
        return None
    return (
        f"{load.name} swaps: {load.swapped_in / 2**20:,.0f} MiB a second come back from disk. It has too little memory "
        "for what runs there: give a smaller `memory_budget` or `batch_size`, or end other programs"
    )


def slowed_gpu(stage: int, why: Sequence[str]) -> str | None:
    """A GPU's clocks are held down.

    Args:
        stage: that computes on it, 0-based.
        why: as ``pipeline.telemetry.gpu_clocks.reasons`` has it.
    """
    if not why:
        return None
    return (
        f"stage {stage + 1}'s GPU is slowed down: {' and '.join(why)}. `nvidia-smi -q -d PERFORMANCE` says more; it "
        "needs cooling or power, or the run another GPU"
    )


def straggler(usual: Mapping[int, float], now: Mapping[int, float]) -> str | None:
    """One stage takes longer than it did, and the others do not.

    Args:
        usual, now: computing seconds of each stage, 0-based, for the same amount of work, before and now.
    """
    slower = {stage: now[stage] / usual[stage] for stage in now if usual.get(stage, 0.0) > 0}
    if not slower:
        return None
    worst = max(slower, key=slower.__getitem__)
    others = [ratio for stage, ratio in slower.items() if stage != worst]
    if slower[worst] < _SLOWER or (others and statistics.median(others) > _STEADY):
        return None
    beside = ", and the other stages as long as before" if others else ""
    return (
        f"stage {worst + 1} is a straggler: it computes {slower[worst]:.1f} times as long for a batch as it did"
        f"{beside}. See what else its device has to do"
    )
