"""What a worker's state goes through on its way to a file: copied between two steps, written by another process."""

from __future__ import annotations

import json
import mmap
import os
import queue
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoints import writer
from pipeline.errors import StageFailedError
from pipeline.layers.state import Snapshot
from pipeline.transport.message import ALIGNMENT

VALUES = "values"
"""Under this name a file's metadata have a snapshot's values, as JSON."""

_LEAVE = 60.0  # seconds in which what is being written may come to its end
_WRITTEN = 10.0  # the same, while a run waits to go on
_BEFORE = 10.0  # the same, while a stage waits to save the next one


@dataclass(frozen=True)
class SavedFile:
    """A file of a checkpoint, or why there is none.

    Attributes:
        key: the checkpoint's.
        name: within its folder.
        sha256, size: of the file, in bytes.
        error: in words, where it could not be written.
        held: it is not written, but held for whoever can (``HeldSaver``).
    """

    key: str
    name: str
    sha256: str = ""
    size: int = 0
    error: str = ""
    held: bool = False


class PartSaver(ABC):
    """Takes a worker's part of each checkpoint, and tells of its files once each.

    ``take`` and ``busy`` may be asked from any thread, while another one saves.
    """

    def __init__(self) -> None:
        self._saved: list[SavedFile] = []

    @abstractmethod
    def save(self, key: str, files: Mapping[str, Snapshot]) -> None:
        """Takes the files of a checkpoint, by their names. Their tensors may change once it has returned."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether files are under way, or came to their end and ``take`` has not told of them."""

    @abstractmethod
    def forget(self) -> None:
        """Has nothing more to tell: the run that asked for what is under way is over.

        Raises:
            StageFailedError: that does not come to its end.
        """

    def take(self) -> list[SavedFile]:
        """The files that came to their end since the last call."""
        count = len(self._saved)
        taken = self._saved[:count]
        del self._saved[:count]
        return taken


class Saver(PartSaver):
    """Writes a worker's part of each checkpoint into a folder, while the worker goes on.

    Copies what it is given into memory of its own before ``save`` returns; a process of its own writes it from there.
    One checkpoint is under way at a time: the next ``save`` waits for it, some seconds long. So it takes as much memory
    as the largest one.

    Args:
        folder: each checkpoint gets a folder in it, named by its key.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._memory = _Memory()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None

    def save(self, key: str, files: Mapping[str, Snapshot]) -> None:
        """A disk that takes too long over the checkpoint before costs this one, rather than the training's time."""
        if not self._idle.wait(_BEFORE):
            late = f"the one before was still being written after {_BEFORE:g} s"
            self._saved += [SavedFile(key, name, error=late) for name in files]
            return
        self._idle.clear()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
            self._thread.start()
        try:
            placed = self._memory.fill(files)
        except OSError as error:  # there is no memory for it
            self._saved += [SavedFile(key, name, error=error.strerror or str(error)) for name in files]
            self._idle.set()
            return
        # A GPU copies while the worker goes on: in the order of its work, so before the next update.
        copied = None
        if any(tensor.is_cuda for file in files.values() for tensor in file.tensors.values()):
            copied = torch.cuda.Event()
            copied.record()
        jobs = {
            name: {
                "path": str(self._folder / key / name),
                "size": self._memory.size,
                "tensors": placed[name],
                "metadata": {VALUES: json.dumps(snapshot.values)},
            }
            for name, snapshot in files.items()
        }
        self._jobs.put(_Job(key, jobs, copied))

    @property
    def busy(self) -> bool:
        return not self._idle.is_set() or bool(self._saved)

    def wait(self, seconds: float) -> bool:
        """Waits until nothing is under way. Returns whether that is so."""
        return self._idle.wait(seconds)

    def forget(self) -> None:
        if not self.wait(_WRITTEN):
            raise StageFailedError(f"a checkpoint in {self._folder} was not written within {_WRITTEN:g} s")
        self.take()

    def close(self) -> None:
        """Ends the process, after what it is writing."""
        self._idle.wait(_LEAVE)
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join(_LEAVE)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.copied is not None:
                job.copied.synchronize()
            for name, asked in job.files.items():
                self._saved.append(self._written(job.key, name, asked))
            self._idle.set()
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(_LEAVE)

    def _written(self, key: str, name: str, asked: dict[str, Any]) -> SavedFile:
        """What became of a file."""
        process = self._running()
        assert process.stdin is not None and process.stdout is not None, "both are pipes"
        try:
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:  # it is gone
            line = ""
        if not line:
            status = process.wait()
            self._process = None  # the next file gets another one
            return SavedFile(key, name, error=f"the process that writes it ended with status {status}")
        answer = json.loads(line)
        if "error" in answer:
            return SavedFile(key, name, error=answer["error"])
        return SavedFile(key, name, sha256=answer["sha256"], size=answer["bytes"])

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            # In a session of its own no Ctrl-C reaches it, which would cut off what it is writing.
            self._process = subprocess.Popen(  # noqa: S603 (its own file)
                [sys.executable, "-P", writer.__file__, str(self._memory.descriptor)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[self._memory.descriptor],
                start_new_session=True,
                text=True,
            )
        return self._process


class HeldSaver(PartSaver):
    """As ``Saver``, for a machine that does not see the folder: holds each part until it is fetched (``part``)."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[tuple[str, str], Snapshot] = {}

    def save(self, key: str, files: Mapping[str, Snapshot]) -> None:
        for name, snapshot in files.items():
            tensors = {one: value.detach().to("cpu", copy=True) for one, value in snapshot.tensors.items()}
            self._held[key, name] = Snapshot(tensors, snapshot.values)
            self._saved.append(SavedFile(key, name, held=True))

    def part(self, key: str, name: str) -> Snapshot:
        """A part that it holds, and from now on no longer."""
        return self._held.pop((key, name))

    @property
    def busy(self) -> bool:
        return bool(self._saved or self._held)

    def forget(self) -> None:
        self._held, self._saved = {}, []


@dataclass(frozen=True)
class _Job:
    key: str
    files: dict[str, dict[str, Any]]
    copied: torch.cuda.Event | None


class _Memory:
    """Memory that the writing process sees as well. No folder holds it, and it is gone with both processes."""

    def __init__(self) -> None:
        self._file = _anonymous()
        self._seen: Tensor | None = None
        self._pinned = False

    @property
    def descriptor(self) -> int:
        return int(self._file.fileno())

    @property
    def size(self) -> int:
        """Bytes that there are now."""
        return 0 if self._seen is None else len(self._seen)

    def fill(self, files: Mapping[str, Snapshot]) -> dict[str, dict[str, tuple[str, list[int], int, int]]]:
        """Copies all tensors. For each file and name gives dtype, shape, offset and bytes."""
        tensors = [(file, name, value) for file, one in files.items() for name, value in one.tensors.items()]
        self._grow(sum(_aligned(value) for _, _, value in tensors), pinned=any(v.is_cuda for _, _, v in tensors))
        assert self._seen is not None
        placed: dict[str, dict[str, tuple[str, list[int], int, int]]] = {file: {} for file in files}
        offset = 0
        for file, name, value in tensors:
            length = value.numel() * value.element_size()
            if length:
                room = self._seen[offset : offset + length].view(value.dtype).view(value.shape)
                room.copy_(value, non_blocking=True)
            placed[file][name] = (str(value.dtype).removeprefix("torch."), list(value.shape), offset, length)
            offset += _aligned(value)
        return placed

    def _grow(self, needed: int, *, pinned: bool) -> None:
        if self._seen is not None and needed <= len(self._seen):
            return
        if self._seen is not None and self._pinned:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self._seen.data_ptr()))
        size = -(-max(needed, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        os.ftruncate(self._file.fileno(), size)
        self._seen = torch.frombuffer(mmap.mmap(self._file.fileno(), size), dtype=torch.uint8)
        self._pinned = pinned
        if pinned:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(self._seen.data_ptr(), size, 0))


def _anonymous() -> Any:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("localpipe-checkpoint"), "r+b")
    return tempfile.TemporaryFile()


def _aligned(tensor: Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
