"""When a run saves a checkpoint, where, and where it goes on: what every executor is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from pipeline.checkpoints.folder import SHARED, CheckpointFolder, DamagedError, layer_file
from pipeline.checkpoints.saver import HeldSaver, PartSaver, Saver
from pipeline.config.interval import Interval, read_interval
from pipeline.config.run_spec import RunSpec
from pipeline.layers.shared_state import VersionedState
from pipeline.layers.state import Snapshot
from pipeline.runtime.passes import START, Cut


@dataclass(frozen=True)
class Resume:
    """A checkpoint from which a run goes on. Travels to the workers, each of which reads its own part.

    Attributes:
        folder: of the run's checkpoints.
        key: the checkpoint's.
        cut: its place in the run.
        parts: what a worker needs of it, by the files' names, where its machine does not see the folder.
    """

    folder: Path
    key: str
    cut: Cut
    parts: Mapping[str, Snapshot] | None = None

    def layer(self, index: int) -> Snapshot:
        """What was saved of a layer (0-based). Raises DamagedError."""
        return self.read(layer_file(index))

    def shared(self) -> Snapshot:
        """What was saved of the state that layers share. Raises DamagedError."""
        return self.read(SHARED)

    def read(self, name: str) -> Snapshot:
        """A file of it. Raises DamagedError."""
        return self.parts[name] if self.parts is not None else CheckpointFolder(self.folder).read(self.key, name)


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """Where a run saves its checkpoints, and where it begins.

    Attributes:
        folder: of its checkpoints; None: it saves none.
        resume: the checkpoint from which it goes on; None: it begins at the beginning.
        seconds: that it took until then, as ``RunResult.seconds``.
        away: a worker's machine does not see the folder.
    """

    folder: Path | None = None
    resume: Resume | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    away: bool = False

    @property
    def cut(self) -> Cut:
        """Where it begins."""
        return self.resume.cut if self.resume is not None else START

    def saver(self, before: PartSaver | None = None) -> PartSaver | None:
        """What writes a worker's parts: what it had ``before``, if that is there. None where nothing is saved."""
        if self.folder is None:
            return None
        return before or (HeldSaver() if self.away else Saver(self.folder))


NO_CHECKPOINTS = Checkpointing()


class Pacer:
    """Says between which batches a checkpoint is due. ``ask`` may be called from any thread.

    Args:
        interval: None: only when it is asked for.
    """

    def __init__(self, interval: Interval | None) -> None:
        self._interval = interval
        self._steps, self._since = 0, time.monotonic()
        self._asked = threading.Event()

    def ask(self) -> None:
        """Has one be due before the next batch."""
        self._asked.set()

    def due(self, steps: int = 1) -> bool:
        """Whether one is due before the next batch, since which so many steps will have gone by. Then a new interval
        begins."""
        due = self._asked.is_set() or (self._interval is not None and self._over(self._interval))
        if due:
            self._asked.clear()
            self._steps, self._since = 0, time.monotonic()
        self._steps += steps
        return due

    def _over(self, interval: Interval) -> bool:
        if interval.steps is not None:
            return self._steps >= interval.steps
        return time.monotonic() - self._since >= interval.seconds


def pacer_of(spec: RunSpec, checkpointing: Checkpointing) -> Pacer | None:
    """What says when a checkpoint of this run is due; None where it saves none."""
    if checkpointing.folder is None:
        return None
    return Pacer(read_interval(spec.settings.checkpoint.checkpoint_every))


def shared_state(spec: RunSpec, saver: PartSaver | None, resume: Resume | None) -> VersionedState:
    """The state that a run's layers share, as it begins or as it was at a checkpoint. Raises DamagedError.

    Args:
        saver: writes its part of every checkpoint.
    """
    saved = None
    if saver is not None:
        write = saver.save

        def saved(key: str, state: dict[str, Tensor]) -> None:
            write(key, {SHARED: Snapshot(state)})

    state = VersionedState(spec, saved)
    if resume is not None:
        try:
            state.load(resume.shared().tensors)
        except (KeyError, ValueError, RuntimeError) as error:
            raise DamagedError(f"{SHARED} is not of this run ({error})") from error
    return state
