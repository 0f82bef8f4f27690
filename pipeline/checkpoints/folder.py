"""A run's checkpoints on disk: which are whole, which is the newest that can be read, which may go.

    checkpoints/
      00-000004-00000033/          named so that later ones sort behind earlier ones
        layer-1.safetensors        a layer: weights, optimizers, tallies, what its best epoch left
        …
        shared.safetensors         the state that layers share, where they share one
        history.safetensors        what the run has reported so far
        manifest.json              written last: a checkpoint without one is not there

Nothing that is read from it is executed: safetensors and JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline import plain_json
from pipeline.checkpoints.saver import VALUES, SavedFile
from pipeline.errors import RunError, UserError
from pipeline.layers.state import Snapshot
from pipeline.tensor_file import save_tensors

FORMAT = 1
"""Of what this version writes."""
MANIFEST = "manifest.json"
SHARED = "shared.safetensors"
HISTORY = "history.safetensors"


def layer_file(index: int) -> str:
    """The file of layer ``index`` (0-based)."""
    return f"layer-{index + 1}.safetensors"


class DamagedError(RunError):
    """A checkpoint that cannot be gone on from; another one may be. The message says what is wrong with it."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself.

    Attributes:
        key: its name.
        facts: of the run and the place in it, as whoever wrote them has it.
        files: by name, each with its sha256 and its size in bytes.
    """

    key: str
    facts: dict[str, Any]
    files: dict[str, tuple[str, int]]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files.values())


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def whole(self) -> list[str]:
        """The checkpoints that are there, the oldest first."""
        try:
            return sorted(folder.name for folder in self.path.iterdir() if (folder / MANIFEST).is_file())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def write(self, key: str, name: str, snapshot: Snapshot) -> SavedFile:
        """Writes a small file of a checkpoint, here and now. Raises OSError where it cannot be written."""
        file = self.path / key / name
        file.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(file, snapshot.tensors, {VALUES: json.dumps(snapshot.values)})
        with file.open("rb") as written:
            return SavedFile(key, name, hashlib.file_digest(written, "sha256").hexdigest(), file.stat().st_size)

    def seal(self, key: str, facts: Mapping[str, Any], files: Collection[SavedFile]) -> Manifest:
        """Makes a checkpoint whole whose files are all there.

        Raises:
            OSError: it cannot be written.
            DamagedError: a file is not there, as seen from here: written on another machine, which shares no storage.
        """
        manifest = Manifest(key, dict(facts), {file.name: (file.sha256, file.size) for file in files})
        values = {
            "format": FORMAT,
            **facts,
            "files": {name: {"sha256": sha256, "bytes": size} for name, (sha256, size) in manifest.files.items()},
        }
        for file in files:
            self._check_size(key, file.name, file.size)
        part = self.path / key / f".{MANIFEST}.part"
        with part.open("w") as written:
            written.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
            written.flush()
            os.fsync(written.fileno())  # the files' own bytes are on the disk by now
        part.replace(self.path / key / MANIFEST)
        return manifest

    def drop(self, key: str) -> None:
        """Removes a checkpoint, or what there is of it. It stops being one first."""
        (self.path / key / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self.path / key, ignore_errors=True)

    def keep_newest(self, count: int, besides: Collection[str] = ()) -> None:
        """Removes all but the newest ones and those ``besides``, and what is left of others that never became whole.

        Those behind the newest may be under way.
        """
        whole = self.whole()
        for key in whole[: max(0, len(whole) - count)]:
            if key not in besides:
                self.drop(key)
        for folder in list(self.path.iterdir()) if whole else ():
            if folder.is_dir() and folder.name < whole[-1] and not (folder / MANIFEST).is_file():
                shutil.rmtree(folder, ignore_errors=True)

    def newest(self, *, passed_over: Callable[[str], None]) -> Manifest | None:
        """The newest checkpoint whose files are all whole; None where there is none.

        Args:
            passed_over: told in a sentence of each newer one that is damaged.

        Raises:
            UserError: the newest was written by a newer version.
        """
        for key in reversed(self.whole()):
            try:
                manifest = self.manifest(key)
                self.verify(manifest)
            except DamagedError as error:
                passed_over(f"{self.path / key}: {error}. The checkpoint before it is used.")
                continue
            return manifest
        return None

    def manifest(self, key: str) -> Manifest:
        """Reads what a checkpoint says of itself.

        Raises:
            DamagedError: it cannot be read.
            UserError: a newer version wrote it.
        """
        file = self.path / key / MANIFEST
        try:
            values = plain_json.read(file)
            found = values["format"]
            files = {
                name: (str(said["sha256"]), int(said["bytes"])) for name, said in dict(values.pop("files")).items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"its manifest cannot be read ({type(error).__name__}: {error})") from error
        if found != FORMAT:
            raise UserError(
                f"{file}: format {found!r}; this version reads {FORMAT}. Go on with the version that wrote it."
            )
        if any(Path(name).name != name for name in files):
            raise DamagedError("its manifest names files outside of it")
        return Manifest(key, values, files)

    def verify(self, manifest: Manifest) -> None:
        """Reads every file once. Raises DamagedError naming one that is not as it was written."""
        for name, (sha256, size) in manifest.files.items():
            file = self.path / manifest.key / name
            try:
                self._check_size(manifest.key, name, size)
                with file.open("rb") as opened:
                    if hashlib.file_digest(opened, "sha256").hexdigest() != sha256:
                        raise DamagedError(f"{name} has other bytes than were written")
            except OSError as error:
                raise DamagedError(f"{name} cannot be read ({error.strerror})") from error

    def _check_size(self, key: str, name: str, size: int) -> None:
        file = self.path / key / name
        if not file.is_file():
            raise DamagedError(f"{name} is missing")
        if (found := file.stat().st_size) != size:
            raise DamagedError(f"{name} is {found:,} bytes of {size:,}")

    def read(self, key: str, name: str) -> Snapshot:
        """A file of a checkpoint.

        Raises:
            DamagedError: it is not there, or no file of ours.
        """
        file = self.path / key / name
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata() or {}
                tensors: dict[str, Tensor] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            values = plain_json.parse(metadata.get(VALUES, "{}"), allow_nan=True)  # a loss may be none
        except (SafetensorError, OSError, ValueError) as error:
            raise DamagedError(f"{name} cannot be read ({error})") from error
        if not isinstance(values, dict):
            raise DamagedError(f"{name} has no values")
        return Snapshot(tensors, values)
