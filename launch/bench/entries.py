"""Who takes part, and the contest itself: everyone starts, then takes turns in rotating order."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from rich.console import Console

from launch.bench.backprop.entry import backprop_runners
from launch.bench.ours import ROWS, PipelineRunner, Row, Source, reference, spec_of, turns_of
from launch.bench.protocol import CannotRunError, Round, Runner
from launch.command_line.setting_names import as_flags
from pipeline.config import checks
from pipeline.config.devices import Devices
from pipeline.config.settings import Settings
from pipeline.data.loader import Dataset
from pipeline.errors import UserError

THEIRS = ("backprop", "dataparallel", "ddp", "gpipe-8", "gpipe-32", "1f1b-8", "1f1b-32")
"""Rows of backpropagation."""
NAMES = (*THEIRS, *ROWS)
"""Every row by name: theirs, then ours, where none are a preset's."""
FED = ("ddp", "cff-1", "cff-2", "pipelined")
"""Rows that run once more with the feeder in the loop, where both sources are asked for."""

_OUT_OF_MEMORY = ("out of memory", "outofmemory", "low on memory", "can't allocate", "memoryerror", "bad_alloc")


@dataclass(kw_only=True)
class Entry:
    """A row of the benchmark and what it came to.

    Attributes:
        source: where its images come from.
        start_seconds: what its start took; None where it did not start.
        rounds: by number, from 0.
        trouble: why it could not start, or go on.
    """

    runner: Runner
    source: Source
    start_seconds: float | None = None
    rounds: dict[int, Round] = field(default_factory=dict)
    trouble: str | None = None

    @property
    def name(self) -> str:
        return self.runner.name


class Absent(Runner):
    """A row of ours that cannot run here. Says why when it is to start."""

    family: Literal["backprop", "local"] = "local"

    def __init__(self, name: str, title: str, reason: str) -> None:
        self.name, self.title, self._reason = name, title, reason

    def start(self) -> None:
        raise CannotRunError(self._reason)

    def round(self, steps: int) -> Round:
        raise CannotRunError(self._reason)

    def close(self) -> None:
        """Nothing was started."""


def chosen(only: Sequence[str], without: Sequence[str], there: Sequence[str] = NAMES) -> tuple[str, ...]:
    """The names of the rows that take part, of those that there are.

    Raises:
        UserError: a name that there is not, or no row is left.
    """
    for flag, names in (("--only", only), ("--without", without)):
        unknown = [name for name in names if name not in there]
        if unknown:
            raise UserError(f"{flag} {' '.join(unknown)}: there is no such row. Rows: {', '.join(there)}.")
    left = tuple(name for name in there if (not only or name in only) and name not in without)
    if not left:
        raise UserError(f"--without {' '.join(without)}: no row is left. Rows: {', '.join(there)}.")
    return left


def sources_of(name: str, wanted: str, names: Collection[str]) -> tuple[Source, ...]:
    """Where a row's images come from by what --source says: with both, once more with the feeder where it counts."""
    if wanted == "memory":
        return ("memory",)
    if wanted == "feeder":
        return ("feeder",)
    return ("memory", "feeder") if name in FED or not any(fed in names for fed in FED) else ("memory",)


@dataclass(frozen=True, kw_only=True)
class BenchProtocol:
    """What all rows have in common.

    Attributes:
        settings: the run that every row trains in its own way.
        rows: ours, by name.
        dataset: its data, opened.
        devices: what rows may use.
        warm, steps: unmeasured and measured steps of a turn.
        console: told what a person should know of how rows are set up.
    """

    settings: Settings
    rows: Mapping[str, Row]
    dataset: Dataset
    devices: Devices
    warm: int
    steps: int
    console: Console


def field_of(protocol: BenchProtocol, names: Sequence[str], source: str) -> list[Entry]:
    """An entry for every row and source, nothing started yet.

    Raises:
        UserError: the settings do not fit the data or each other.
    """
    entries = [
        Entry(runner=(_ours if name in protocol.rows else _theirs)(protocol, name, where), source=where)
        for name in names
        for where in sources_of(name, source, names)
    ]
    # From memory first: rows of one source stand together.
    return sorted(entries, key=lambda entry: entry.source != "memory")


def _theirs(protocol: BenchProtocol, name: str, source: Source) -> Runner:
    """Backpropagation on the net, data and stages of a pipelined row."""
    spec = spec_of(reference(protocol.rows), protocol.settings, protocol.devices, protocol.console)
    if source == "feeder":  # as many images as ours read, so that both have them decoded
        spec = turns_of(spec, source, warm=protocol.warm, steps=protocol.steps)
    dataset = protocol.dataset if source == "memory" else None
    balanced = protocol.settings.pipeline.partition == "balanced"
    every = backprop_runners(spec, protocol.devices.count, dataset=dataset, warm=protocol.warm, balanced=balanced)
    return next(runner for runner in every if runner.name == name)


def _ours(protocol: BenchProtocol, name: str, source: Source) -> Runner:
    row, devices = protocol.rows[name], protocol.devices
    spec = spec_of(row, protocol.settings, devices, protocol.console)
    title = f"{row.title}, {spec.num_stages} stages" if row.pipelined else row.title
    if row.pipelined and devices.count < 2:
        return Absent(name, row.title, "needs 2 devices or more, and there is 1 device.")
    if row.pipelined and spec.num_stages < 2:
        return Absent(name, row.title, "needs 2 stages or more, and the net or --stages allows one.")
    turns = turns_of(spec, source, warm=protocol.warm, steps=protocol.steps)
    return PipelineRunner(name, title, turns, warm=protocol.warm)


def compete(entries: Sequence[Entry], *, rounds: int, steps: int, say: Callable[[str], None]) -> None:
    """Starts everyone, lets them take turns, and ends them. A row that fails drops out; the others go on.

    Round r begins with row r. What has been measured is in the entries, also where this raises.

    Raises:
        KeyboardInterrupt: stopped by hand.
    """
    try:
        for entry in entries:
            begun = time.perf_counter()
            if _attempt(entry, entry.runner.start, say):
                entry.start_seconds = time.perf_counter() - begun
                say(f"{label(entry)}: started in {entry.start_seconds:.1f} s")
        for number in range(rounds):
            for entry in in_turn(entries, number):
                if entry.trouble is None:
                    _attempt(entry, partial(_take_turn, entry, number, steps), say)
            say(f"round {number + 1} of {rounds}: " + ", ".join(_speeds(entries, number)))
    finally:
        for entry in entries:
            entry.runner.close()


def in_turn(entries: Sequence[Entry], number: int) -> Iterator[Entry]:
    """The order of a round: each begins one row further than the one before, so that nobody is always first."""
    first = number % len(entries)
    yield from (*entries[first:], *entries[:first])


def label(entry: Entry) -> str:
    """A row's name, with its source where that is the feeder."""
    return entry.name if entry.source == "memory" else f"{entry.name} (feeder)"


def _take_turn(entry: Entry, number: int, steps: int) -> None:
    taken = entry.runner.round(steps)
    if not math.isfinite(taken.loss):
        raise CannotRunError(
            f"its loss is {taken.loss}: what it computes is worth nothing, and such steps may be faster. Lower --lr."
        )
    entry.rounds[number] = taken


def _attempt(entry: Entry, work: Callable[[], None], say: Callable[[str], None]) -> bool:
    """Whether it worked. If not, the row is out, with its reason."""
    try:
        work()
        return True
    except Exception as error:  # noqa: BLE001 (whatever a row fails with, the others can still run)
        said = str(error) if isinstance(error, CannotRunError) else f"{type(error).__name__}: {error}"
        entry.trouble = as_flags(said) + _advice(entry, said)
        say(f"{label(entry)}: {entry.trouble}")
        entry.runner.close()
        return False


def _advice(entry: Entry, said: str) -> str:
    """What would help a row of ours that ran out of memory; theirs say it themselves."""
    if not isinstance(entry.runner, PipelineRunner):
        return ""
    if not (any(sign in said.lower() for sign in _OUT_OF_MEMORY) or "died" in said):
        return ""
    batch = entry.runner.spec.settings.train.batch_size
    return f" The batch was {batch} images. If memory ran out, a smaller --batch-size or --precision bf16 helps."


def _speeds(entries: Sequence[Entry], number: int) -> Iterator[str]:
    for entry in entries:
        if number in entry.rounds:
            taken = entry.rounds[number]
            yield f"{label(entry)} {taken.images / taken.seconds:,.0f}"


def stages_needed(entries: Sequence[Entry]) -> int:
    """Stages of all our rows together: so many actors live at once."""
    return sum(entry.runner.spec.num_stages for entry in entries if isinstance(entry.runner, PipelineRunner))


def idle_devices(settings: Settings, devices: Devices) -> str | None:
    """A sentence where the net has too few layers to use all devices."""
    num_layers = checks.num_layers(settings)
    if settings.pipeline.stages != "auto" or devices.count <= num_layers:
        return None
    return (
        f"{devices.count} devices, and the net has {num_layers} layers that learn locally: pipelined rows have "
        f"{num_layers} stages and leave {devices.count - num_layers} idle. More layers would use them: a deeper net "
        "or, where several form a module, more --modules."
    )
