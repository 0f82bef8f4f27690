"""What every worker does that has a part in checkpoints."""

from __future__ import annotations

from pathlib import Path

from pipeline.checkpoints.saver import HeldSaver, PartSaver, SavedFile
from pipeline.layers.state import Snapshot
from pipeline.runtime.checkpointing import Checkpointing
from workers import arrivals


class HasParts:
    """A worker that saves: into the run's folder, or where its machine does not see that, for others to fetch."""

    _saver: PartSaver | None = None

    def sees(self, folder: Path, word: str) -> bool:
        """Whether the folder at this path, on this machine, is the one that was marked so."""
        return arrivals.sees(folder, word)

    def part(self, key: str, name: str) -> Snapshot:
        """A part of a checkpoint that it holds, and from now on no longer."""
        assert isinstance(self._saver, HeldSaver), "others write theirs"
        return self._saver.part(key, name)

    def saved(self) -> tuple[list[SavedFile], bool]:
        """Files of checkpoints that came to their end since the last call, and whether others are being written."""
        if self._saver is None:
            return [], False
        saving = self._saver.busy
        return self._saver.take(), saving

    def _save_anew(self, checkpointing: Checkpointing) -> PartSaver | None:
        """What writes its parts from now on; what the run before asked for is forgotten.

        Raises:
            StageFailedError: what is being written does not come to its end.
        """
        if self._saver is not None:
            self._saver.forget()
        self._saver = checkpointing.saver(self._saver)
        return self._saver
