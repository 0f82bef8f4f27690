"""What every worker does that has a part in checkpoints."""

from __future__ import annotations

import threading
from pathlib import Path

from pipeline.checkpoints.saver import HeldSaver, PartSaver, SavedFile
from pipeline.errors import PeerLostError
from pipeline.layers.state import Snapshot
from pipeline.runtime.checkpointing import Checkpointing
from workers import arrivals


class HasParts:
    """A worker that saves: into the run's folder, or where its machine does not see that, for others to fetch.

    What saves outlasts an attempt at the run. ``attempt`` as in ``workers.attempts``.
    """

    def __init__(self) -> None:
        self._saver: PartSaver | None = None
        self._saves_for = -1  # attempt
        self._one_at_a_time = threading.Lock()

    def sees(self, folder: Path, word: str) -> bool:
        """Whether the folder at this path, on this machine, is the one that was marked so."""
        return arrivals.sees(folder, word)

    def part(self, attempt: int, key: str, name: str) -> Snapshot:
        """A part of a checkpoint that it holds, and from now on no longer."""
        with self._one_at_a_time:
            self._check(attempt)
            assert isinstance(self._saver, HeldSaver), "others write theirs"
            return self._saver.part(key, name)

    def saved(self, attempt: int) -> tuple[list[SavedFile], bool]:
        """Files of checkpoints that came to their end since the last call, and whether others are being written."""
        with self._one_at_a_time:
            self._check(attempt)
            if self._saver is None:
                return [], False
            saving = self._saver.busy
            return self._saver.take(), saving

    def _check(self, attempt: int) -> None:
        """Raises PeerLostError where the attempt is over. The same place saves a checkpoint of the same key again."""
        if attempt != self._saves_for:
            raise PeerLostError("the run has begun anew")

    def _save_anew(self, checkpointing: Checkpointing, attempt: int) -> PartSaver | None:
        """What writes its parts from now on; what the run before asked for is forgotten.

        Raises:
            StageFailedError: what is being written does not come to its end.
        """
        with self._one_at_a_time:
            self._saves_for = attempt
        if self._saver is not None:
            self._saver.forget()
        self._saver = checkpointing.saver(self._saver)
        return self._saver
