"""Makes checkpoints whole: gathers what the workers have written, and writes down what run and place it is of."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from pipeline.checkpoints.folder import HISTORY, SHARED, CheckpointFolder, DamagedError, layer_file
from pipeline.checkpoints.saver import SavedFile
from pipeline.config.run_spec import RunSpec
from pipeline.config.saved import config_of
from pipeline.runtime.checkpointing import Checkpointing
from pipeline.runtime.history import History, RunResult
from pipeline.runtime.observer import Observer
from pipeline.runtime.passes import Cut, described, ends_phase, gone


class Keeper:
    """The checkpoints of a run that goes on. One process has it, the one that controls the run.

    Without a folder it keeps none, and everything that it is told is in vain.
    """

    def __init__(self, spec: RunSpec, checkpointing: Checkpointing, observer: Observer) -> None:
        self._spec, self._observer = spec, observer
        self._folder = CheckpointFolder(checkpointing.folder) if checkpointing.folder is not None else None
        self._expected = {layer_file(index) for index in range(spec.num_layers)}
        if spec.shared_versions is not None:
            self._expected.add(SHARED)
        self._parts: dict[str, dict[str, SavedFile]] = {}
        self._failed: set[str] = set()
        self._warned = False

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is one to go on from."""
        return self._folder is not None and bool(self._folder.whole())

    def heard(self, files: Iterable[SavedFile]) -> None:
        """Takes note of files that workers have written, or could not."""
        for file in files:
            if file.error:
                self._failed.add(file.key)
                self._parts.pop(file.key, None)
                self._complain(file.error)
            elif file.key not in self._failed:
                self._parts.setdefault(file.key, {})[file.name] = file

    @property
    def waits(self) -> bool:
        """Whether parts of a checkpoint are there, and others are still to come."""
        return bool(self._parts)

    def seal(self, history: History, restored: Sequence[int], seconds: Mapping[str, float]) -> None:
        """Makes those checkpoints whole of which every worker has written its part.

        Args:
            history: with all reports that came before the files.
            restored: the best epochs of the phases that are over.
            seconds: that the run has taken so far.
        """
        if self._folder is None:
            return
        for key, files in sorted(self._parts.items()):
            if files.keys() == self._expected:
                del self._parts[key]
                self._seal(self._folder, key, files, Cut.of_key(key, restored), history, seconds)

    def _seal(
        self,
        folder: CheckpointFolder,
        key: str,
        files: Mapping[str, SavedFile],
        cut: Cut,
        history: History,
        seconds: Mapping[str, float],
    ) -> None:
        facts = {
            "where": described(self._spec, cut),
            "cut": asdict(cut),
            "saved": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": dict(seconds),
            "config": config_of(self._spec),
        }
        try:
            said = folder.write(key, HISTORY, history.snapshot(gone(self._spec, cut)))
            manifest = folder.seal(key, facts, [*files.values(), said])
            folder.keep_newest(self._spec.settings.checkpoint.keep_checkpoints, ends(self._spec, folder))
        except OSError as error:
            self._complain(error.strerror or str(error))
            return
        except DamagedError as error:
            self._complain(f"{error} here: stages on other machines write to the run folder too, so it must be shared")
            return
        self._warned = False
        self._observer.checkpointed(manifest)

    def _complain(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            self._observer.notified(
                f"A checkpoint could not be saved ({reason}). Training goes on; the checkpoint before it is kept."
            )


def ends(spec: RunSpec, folder: CheckpointFolder) -> list[str]:
    """Checkpoints at the end of a phase of the layers' training, which more epochs may follow."""
    phases = range(len(spec.phases))
    return [key for key in folder.whole() if ends_phase(spec, Cut.of_key(key, phases))]


def history_of(spec: RunSpec, checkpointing: Checkpointing) -> History:
    """The reports of a run before the place where it begins: none, or those of the checkpoint.

    Raises:
        DamagedError: they cannot be read.
    """
    history = History.of(spec)
    resume = checkpointing.resume
    if resume is not None:
        try:
            history.load_snapshot(CheckpointFolder(resume.folder).read(resume.key, HISTORY))
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"{HISTORY} is not of this run ({error})") from error
        history.done_before = resume.cut.steps
    return history


def result_of(spec: RunSpec, checkpointing: Checkpointing, devices: Sequence[str]) -> RunResult:
    """What a run has when it begins: nothing, or what it had at its checkpoint. Raises DamagedError."""
    history = history_of(spec, checkpointing)
    return RunResult(
        status="finished",
        best_epoch=history.best_epoch,
        weights={},
        last={},
        history=history,
        seconds=dict(checkpointing.seconds),
        devices=list(devices),
    )
