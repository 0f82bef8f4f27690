"""A copy of a run folder elsewhere, wherever fsspec reaches: an object store, another machine's disk, a mounted folder.

What goes away with this machine is there. Copies are made by the launching process, beside the training.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from launch.output.run_folder import CHECKPOINTS, run_name
from pipeline.checkpoints.folder import MANIFEST
from pipeline.errors import UserError
from pipeline.stores import is_url, open_store, reason

_LAST = 600.0  # seconds that the last copy may take, when the run is over
_PROBE = ".localpipe-probe"

Stamp = tuple[int, int]
"""Of a file: size and time of change, by which one that is new is known."""


class Mirror:
    """Copies a run folder to ``URL/NAME OF THE RUN``. A context manager: at its end everything is copied once more.

    A checkpoint's manifest is copied last, so what is cut off is no checkpoint. What the run removes of its checkpoints
    is removed there too, after that. A copy that fails is said, and the next one tries again.

    Args:
        url: a folder, as fsspec has it: s3://bucket/runs, file:///mnt/runs.
        run: the run folder.
        warn: told why a copy was not made.

    Raises:
        UserError: there is no such file system.
    """

    def __init__(self, url: str, run: Path, warn: Callable[[str], None]) -> None:
        self.url, self._run, self._warn = f"{url.rstrip('/')}/{run_name(run)}", run, warn
        self._files, self._root = open_store(self.url)
        self._sent: dict[str, Stamp] = {}
        self._due, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):  # a person does not wait
            return
        self._over.set()
        self._due.set()
        self._thread.join(_LAST)
        if self._thread.is_alive():
            self._warn(f"{self.url}: was not copied to within {_LAST:g} s; not all of the run is there.")

    def copy(self) -> None:
        """Has what is new copied, beside the caller. Where that is under way, once more after it."""
        self._due.set()

    def _work(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            over = self._over.is_set()
            try:
                self._copy_new()
            except Exception as error:  # noqa: BLE001 (each store has errors of its own; a run is worth more than its copy)
                self._warn(f"{self.url}: could not be copied to ({reason(error)}). The run goes on.")
            if over:
                return

    def _copy_new(self) -> None:
        there = {
            file: stamp for file, stamp in _stamps(self._run).items() if not PurePosixPath(file).name.startswith(".")
        }
        for file in sorted(there, key=lambda file: (PurePosixPath(file).name == MANIFEST, file)):
            if self._sent.get(file) == there[file]:
                continue
            try:
                self._files.makedirs(str(PurePosixPath(self._root, file).parent), exist_ok=True)
                self._files.put_file(str(self._run / file), f"{self._root}/{file}")
            except FileNotFoundError:
                if (self._run / file).exists():
                    raise
                continue  # the run has removed it meanwhile
            self._sent[file] = there[file]
        self._remove_old(there)

    def _remove_old(self, there: dict[str, Stamp]) -> None:
        """Removes checkpoints that the run has removed, their manifests first."""
        prefix = f"{self._root.strip('/')}/"
        found = [str(path).strip("/").removeprefix(prefix) for path in self._files.find(f"{self._root}/{CHECKPOINTS}")]
        gone = [file for file in found if file not in there]
        for file in sorted(gone, key=lambda file: (PurePosixPath(file).name != MANIFEST, file)):
            self._files.rm_file(f"{self._root}/{file}")
            self._sent.pop(file, None)


def check_mirror(url: str, *, new: str | None = None) -> None:
    """Whether runs can be copied to a URL.

    Args:
        new: name of a run that is about to begin.

    Raises:
        UserError: nothing can be written there, or a run of that name is there.
    """
    if not is_url(url):
        raise UserError(f"`mirror` {url}: is no URL. Give one such as s3://bucket/runs or file:///mnt/runs.")
    files, root = open_store(url.rstrip("/"))
    bucket = root.partition("/")[0]  # stores have them; on disks, paths begin with "/"
    with _told(f"`mirror` {url}: cannot be written"):
        if bucket and not files.exists(bucket):  # makedirs would make one, which somebody pays for
            raise UserError(f"`mirror` {url}: there is no bucket {bucket}. Make it first, or give the name of another.")
        files.makedirs(root, exist_ok=True)
        files.pipe_file(f"{root}/{_PROBE}", b"localpipe")
        files.rm_file(f"{root}/{_PROBE}")
        taken = new is not None and files.exists(f"{root}/{new}/config.json")
    if taken:
        raise UserError(f"`mirror` {url}: has a run {new}. Give another `run_dir`.")


def fetch(url: str, into: Path) -> Path:
    """Brings a copied run back into a folder of its name. Returns the folder.

    Raises:
        UserError: there is none, or a folder of that name is here by now.
    """
    url = url.rstrip("/")
    files, root = open_store(url)
    run = into / PurePosixPath(root).name
    if run.exists():
        raise UserError(f"{run} is here: `launch resume {run}` goes on with it. Remove it to fetch {url} anew.")
    with _told(f"{url}: cannot be read"):
        found = [str(path) for path in files.find(root)]
    if f"{root.strip('/')}/config.json" not in {path.strip("/") for path in found}:
        raise UserError(f"{url}: holds no run. Give what `launch` said it copies to, such as s3://bucket/runs/NAME.")
    part = run.with_name(f".{run.name}.part")
    prefix = f"{root.strip('/')}/"
    with _told(f"{url}: cannot be read"):
        for path in found:
            file = part / path.strip("/").removeprefix(prefix)
            if not file.resolve().is_relative_to(part.resolve()):
                raise UserError(f"{url}: names a file outside of its folder: {path}")
            file.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(path, str(file))
    part.rename(run)
    return run


def _stamps(run: Path) -> dict[str, Stamp]:
    """The files of a run folder, by their names relative to it."""
    found = {}
    for file in run.rglob("*"):
        with suppress(OSError):  # removed meanwhile
            said = file.stat()
            if file.is_file():
                found[file.relative_to(run).as_posix()] = (said.st_size, said.st_mtime_ns)
    return found


@contextmanager
def _told(what: str) -> Iterator[None]:
    """A store's errors, of whatever kind they are, as a mistake in what was asked for."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} ({reason(error)}).") from error
