"""Parts of checkpoints on their way from the workers into the run's folder.

A worker whose machine sees the folder writes its part there. Where it does not, as on a cluster without shared storage,
it holds a copy, which comes through Ray and is written here.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.checkpoints.saver import SavedFile, Saver
from pipeline.layers.state import Snapshot

_MARK = ".mark"
_MOMENT = 0.2  # seconds


def mark(folder: Path) -> str:
    """Writes a word into a folder by which others can tell that they see this one. "" where nobody may write there."""
    word = secrets.token_hex(8)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MARK).write_text(word)
    except OSError:
        return ""
    return word


def unmark(folder: Path) -> None:
    (folder / _MARK).unlink(missing_ok=True)


def sees(folder: Path, word: str) -> bool:
    """Whether the folder at this path is the one that was marked so."""
    try:
        return not word or (folder / _MARK).read_text() == word
    except OSError:
        return False


class Arrivals:
    """What the launching process knows of the files that workers write, or hold for it to write.

    Args:
        folder: of the run's checkpoints; None: it saves none.
        attempt: at the run, of which they are.
    """

    def __init__(self, folder: Path | None, attempt: int) -> None:
        self._folder, self._attempt = folder, attempt
        self._saver: Saver | None = None
        self._saved: list[SavedFile] = []
        self._saving: dict[str, bool] = {}
        self._coming: dict[Any, SavedFile] = {}  # by what was asked of the worker that holds it
        self._here: dict[str, dict[str, Snapshot]] = {}  # that came, by their checkpoints' keys

    def heard(self, name: str, worker: Any, files: list[SavedFile], *, saving: bool) -> None:
        """Takes note of what a worker says: which files came to their end, and whether others are being written."""
        self._saving[name] = saving
        for file in files:
            if file.held:
                self._coming[worker.part.remote(self._attempt, file.key, file.name)] = file
            else:
                self._saved.append(file)

    def take(self) -> list[SavedFile]:
        """The files that have come to their end since the last call."""
        self._fetch()
        taken, self._saved = self._saved, []
        return taken

    @property
    def busy(self) -> bool:
        """Whether others are on their way, or were and ``take`` has not told of them."""
        writes = self._saver is not None and self._saver.busy
        return any(self._saving.values()) or bool(self._coming or self._here or self._saved) or writes

    def close(self) -> None:
        if self._saver is not None:
            self._saver.close()

    def _fetch(self) -> None:
        """Takes what has come, and has it be written, a checkpoint's parts at a time."""
        for asked in ray.wait(list(self._coming), num_returns=len(self._coming), timeout=0)[0] if self._coming else ():
            file = self._coming.pop(asked)
            try:
                self._here.setdefault(file.key, {})[file.name] = ray.get(asked)
            except RayError:  # the worker is gone, which the run says by its name
                continue
        while self._here and self._writes():
            key = min(self._here)
            assert self._saver is not None, "it writes"
            self._saver.save(key, self._here.pop(key))
        if self._saver is not None:
            self._saved += self._saver.take()

    def _writes(self) -> bool:
        """Whether another part can be written now; a look at a run may take a moment, and not more."""
        if self._saver is None:
            assert self._folder is not None, "nothing comes otherwise"
            self._saver = Saver(self._folder)
        return self._saver.wait(_MOMENT)
