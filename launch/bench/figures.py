"""The arithmetic of the report: from rounds to medians, ratios, ideals and shares of time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from launch.bench.entries import Entry
from launch.bench.ours import Source, StageUse
from launch.bench.protocol import Round

BACKPROP = ("ddp",)
SERIAL = ("cff-serial-1", "serial")
"""The rows that others are held against: of one name or the other there is one."""
PIPELINES = ("gpipe-8", "gpipe-32", "1f1b-8", "1f1b-32")
"""Pipelines of backpropagation, of which the fastest counts."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How much faster one row is than another.

    Attributes:
        of_medians: median images/s over median images/s.
        paired: median of the ratios round by round: what slowed a whole round down is not in it.
        low, high: of the ratios round by round.
    """

    of_medians: float
    paired: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Rival:
    """Another row, and how much faster than it this one is."""

    name: str
    ratio: Ratio


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device of a row, medians over the rounds.

    Attributes:
        shares: of the measured wall time, by what it went to; they add up to 1.
        step_seconds: busy seconds of a step; None where a row does not tell.
        peak_bytes: most memory in any round.
    """

    name: str
    shares: dict[str, float]
    step_seconds: float | None
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Ideal:
    """What a pipeline could reach with the step times that its stages had in the same run, beside what it reached.

    Filling and draining are apart: both figures are of a full pipeline.

    Attributes:
        images_per_second: a batch in every step of the slowest stage.
        speedup: Σ t / max t.
        measured_speedup: Σ t over the measured time of a step.
        efficiency: measured over ideal; the median over the rounds.
    """

    images_per_second: float
    speedup: float
    measured_speedup: float
    efficiency: float


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A row of the report.

    Attributes:
        images_per_second, low, high: median and range over the rounds; None where none was measured.
        to_backprop, to_serial: how much faster than ``ddp`` and ``cff-serial-1``, or a preset's ``serial``, from the
            same source, or from memory where those do not run from it.
        rival: of a pipeline of ours, the fastest pipeline of backpropagation; None where there is none.
        ideal: of our rows.
        bytes_per_step: between devices, in one step.
        step_seconds: median wall seconds of a step.
        loss: the last one.
    """

    name: str
    title: str
    family: Literal["backprop", "local"]
    source: Source
    start_seconds: float | None
    trouble: str | None
    images_per_second: float | None
    low: float | None
    high: float | None
    step_seconds: float | None
    to_backprop: Ratio | None
    to_serial: Ratio | None
    rival: Rival | None
    ideal: Ideal | None
    devices: tuple[Device, ...]
    bytes_per_step: int | None
    loss: float | None

    @property
    def label(self) -> str:
        return self.name if self.source == "memory" else f"{self.name} (feeder)"

    @property
    def peak_bytes(self) -> int | None:
        """Of the device that held most."""
        return max((device.peak_bytes for device in self.devices), default=None)


def rate(taken: Round) -> float:
    """Images per second."""
    return taken.images / taken.seconds


def figures_of(entries: Sequence[Entry], batch_size: int) -> list[Figures]:
    """A row for every entry, in their order."""
    return [_figures(entry, entries, batch_size) for entry in entries]


def ratio(entry: Entry, other: Entry) -> Ratio | None:
    """How much faster ``entry`` is; None where the two share no round."""
    shared = sorted(entry.rounds.keys() & other.rounds.keys())
    if not shared:
        return None
    each = [rate(entry.rounds[number]) / rate(other.rounds[number]) for number in shared]
    of_medians = median(map(rate, entry.rounds.values())) / median(map(rate, other.rounds.values()))
    return Ratio(of_medians=of_medians, paired=median(each), low=min(each), high=max(each))


def ideal_of(rounds: Sequence[Round], batch_size: int) -> Ideal | None:
    """The ideal of a pipeline's rounds; None where stages did not tell their step times."""
    told = []
    for taken in rounds:
        steps = [use.step_seconds for use in taken.devices if isinstance(use, StageUse)]
        if not steps or len(steps) < len(taken.devices) or max(steps) <= 0:
            return None
        told.append((sum(steps), max(steps), rate(taken)))
    if not told:
        return None
    return Ideal(
        images_per_second=median(batch_size / slowest for _, slowest, _ in told),
        speedup=median(total / slowest for total, slowest, _ in told),
        measured_speedup=median(total * measured / batch_size for total, _, measured in told),
        efficiency=median(measured * slowest / batch_size for _, slowest, measured in told),
    )


def _figures(entry: Entry, entries: Sequence[Entry], batch_size: int) -> Figures:
    rounds = list(entry.rounds.values())
    rates = [rate(taken) for taken in rounds]
    return Figures(
        name=entry.name,
        title=entry.runner.title,
        family=entry.runner.family,
        source=entry.source,
        start_seconds=entry.start_seconds,
        trouble=entry.trouble,
        images_per_second=median(rates) if rates else None,
        low=min(rates, default=None),
        high=max(rates, default=None),
        step_seconds=batch_size / median(rates) if rates else None,
        to_backprop=_ratio_to(BACKPROP, entry, entries),
        to_serial=_ratio_to(SERIAL, entry, entries),
        rival=_rival(entry, entries),
        ideal=ideal_of(rounds, batch_size),
        devices=_devices(rounds),
        bytes_per_step=rounds[-1].bytes_per_step if rounds else None,
        loss=rounds[-1].loss if rounds else None,
    )


def _ratio_to(names: Collection[str], entry: Entry, entries: Sequence[Entry]) -> Ratio | None:
    return next((ratio(entry, other) for other in _comparable(names, entry, entries)), None)


def _rival(entry: Entry, entries: Sequence[Entry]) -> Rival | None:
    if entry.runner.family != "local" or not any(len(taken.devices) > 1 for taken in entry.rounds.values()):
        return None
    held = [(other.name, ratio(entry, other)) for other in _comparable(PIPELINES, entry, entries)]
    rivals = [Rival(name=name, ratio=found) for name, found in held if found is not None]
    return min(rivals, key=lambda rival: rival.ratio.of_medians, default=None)


def _comparable(names: Collection[str], entry: Entry, entries: Sequence[Entry]) -> list[Entry]:
    """The measured rows of these names: those of the same source, or else all."""
    same = [other for other in entries if other.name in names and other.rounds]
    return [other for other in same if other.source == entry.source] or same


def _devices(rounds: Sequence[Round]) -> tuple[Device, ...]:
    if not rounds:
        return ()
    devices = []
    for number, use in enumerate(rounds[-1].devices):
        uses = [taken.devices[number] for taken in rounds]
        totals = [sum(each.seconds.values()) or 1.0 for each in uses]
        shares = {
            kind: median(each.seconds[kind] / total for each, total in zip(uses, totals, strict=True))
            for kind in use.seconds
        }
        whole = sum(shares.values()) or 1.0  # medians of parts need not add up
        steps = [each.step_seconds for each in uses if isinstance(each, StageUse)]
        devices.append(
            Device(
                name=use.name,
                shares={kind: share / whole for kind, share in shares.items()},
                step_seconds=median(steps) if steps else None,
                peak_bytes=max(each.peak_bytes for each in uses),
            )
        )
    return tuple(devices)
