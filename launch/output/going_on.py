"""A run folder whose run goes on: locked by one process, and without what was written behind the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from launch.output.logs.figures import RUN, STAGE
from launch.output.whole_file import write_whole
from pipeline.errors import UserError
from pipeline.runtime.history import History
from pipeline.telemetry.reports import PassReport

LOCK = ".lock"
"""Held by the process that writes to a run folder. The system lets go of it when the process ends, however it does."""

Done = Collection[tuple[str, int]]
"""Passes by their kind, as metrics name it, and epoch from 1."""


def lock_of(run: Path) -> FileLock:
    """Locks a run folder for this process. Raises UserError where another one has it."""
    lock = FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{run}: another process writes to it. Wait for its end, or stop it.") from error
    return lock


def is_locked(run: Path) -> bool:
    """Whether a process writes to a run folder now."""
    lock = FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def reports_of(history: History) -> Iterator[PassReport]:
    """What a history knows, as if one stage had just reported it; it knows no times."""
    for kind, epoch in history.passes():
        yield PassReport(stage=0, kind=kind, epoch=epoch, layers=history.layers(kind, epoch) or [])


def cut_metrics(file: Path, done: Done) -> None:
    """Keeps of metrics.jsonl the lines of these passes."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            said = json.loads(line)
            if (said["kind"], said["epoch"]) in done:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # cut off when the run ended
    write_whole(file, "".join(kept))


@dataclass(frozen=True)
class Before:
    """What of a run lies before the checkpoint from which it goes on.

    Attributes:
        passes: those that are over.
        step: training steps of the run, also of a pass that was under way.
        steps_per_epoch: of the run.
    """

    passes: Done
    step: int
    steps_per_epoch: int

    def has(self, tag: str, step: int) -> bool:
        """Whether something that TensorBoard shows is a figure of before the checkpoint. What is written of every part
        of the run, settings and pictures, is none."""
        what, _, whose = tag.rpartition("/")
        if whose.startswith(f"{STAGE} "):
            return step <= self.step
        if what == "step loss":  # those of a pass are told at its end
            return ("train", (step - 1) // self.steps_per_epoch + 1) in self.passes
        kind = "validate" if whose == RUN else what.partition(" ")[0]
        epoch = 1 if kind == "test" else step // self.steps_per_epoch
        return (kind, epoch) in self.passes


def before(history: History, step: int, steps_per_epoch: int) -> Before:
    """What lies before the end of a history, and before a training step."""
    passes = frozenset((kind.name.lower(), epoch + 1) for kind, epoch in history.passes())
    return Before(passes, step, steps_per_epoch)


def cut_events(folder: Path, kept: Before) -> None:
    """Keeps of TensorBoard's events those before the checkpoint, and brings them into one file: two would overlap."""
    files = sorted(folder.glob("events.out.tfevents*"))
    if not files:
        return
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # noqa: PLC0415 (seconds)
    from torch.utils.tensorboard.writer import FileWriter  # noqa: PLC0415

    writer = FileWriter(str(folder), filename_suffix=".before")
    for file in files:
        for event in EventFileLoader(str(file)).Load():
            values = [value for value in event.summary.value if kept.has(value.tag, event.step)]
            if values:
                del event.summary.value[:]
                event.summary.value.extend(values)
                writer.event_writer.add_event(event)
    writer.close()
    for file in files:
        file.unlink()
