"""A prepared data set that lies elsewhere, behind http(s) or wherever fsspec reaches, and its copy on this machine.

What is at the URL is what ``launch prepare`` leaves: index.json, and the shards that it names with their sizes and
hashes. Every shard is checked when it has come. A copy that is cut off goes on with the next shard.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from pipeline.data.build import exclusive
from pipeline.data.fetch import UnreachableError, download
from pipeline.data.index import INDEX_FILE, DataIndex, ShardInfo
from pipeline.data.shards import ShardError, verify
from pipeline.data.sources.base import Progress, silent
from pipeline.errors import UserError
from pipeline.stores import open_store, reason

Get = Callable[[str, Path, Progress], None]
"""Gets a file of the data set, by its name, into a path. Raises UserError where it cannot be had."""


def fetch_set(url: str, data_dir: Path, progress: Progress) -> Path:
    """Copies the data set at a URL below ``data_dir``, as far as it is not there. Returns the folder.

    Raises:
        UserError: it cannot be read, is no prepared data set, or what came is not what its index says; another
            process copies it; or the disk is full.
    """
    url = url.rstrip("/")
    get = _over_http(url) if urlsplit(url).scheme in ("http", "https") else _through_fsspec(url)
    target = data_dir / f"{PurePosixPath(urlsplit(url).path).name or 'data'}-{_known_as(url)}"
    with exclusive(target):
        partial = target.parent / f".{target.name}.partial"
        partial.mkdir(exist_ok=True)
        try:
            get(INDEX_FILE, partial / INDEX_FILE, silent)
            index = DataIndex.load(partial)
            shards = [shard for split in index.splits.values() for shard in split.shards]
            if _is_copy(target, index, shards):
                return target
            for done, shard in enumerate(shards):
                progress(f"copying {url}", done, len(shards))
                _get_whole(url, shard, partial, get)
            for file in {path.name for path in partial.iterdir()} - {INDEX_FILE, *(shard.file for shard in shards)}:
                (partial / file).unlink()  # of what was there before it changed
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
        finally:
            (partial / INDEX_FILE).unlink(missing_ok=True)
            if partial.is_dir() and not any(partial.iterdir()):
                partial.rmdir()
    return target


def _get_whole(url: str, shard: ShardInfo, folder: Path, get: Get) -> None:
    """Has a shard come, unless an earlier copy that was cut off left it there."""
    if _problem(folder, shard, hashed=True):
        get(shard.file, folder / shard.file, silent)
    if problem := _problem(folder, shard, hashed=True):
        (folder / shard.file).unlink()
        raise UserError(f"{url}/{shard.file} {problem}. It was deleted here. Copy the prepared folder to {url} anew.")


def _known_as(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:12]


def _is_copy(folder: Path, index: DataIndex, shards: list[ShardInfo]) -> bool:
    """Whether the folder holds what the index says, by its hashes and the files' sizes."""
    try:
        same = DataIndex.load(folder) == index
    except UserError:
        return False
    return same and not any(_problem(folder, shard, hashed=False) for shard in shards)


def _problem(folder: Path, shard: ShardInfo, *, hashed: bool) -> str:
    """What is wrong with a shard's copy; "" where it is as the index says."""
    try:
        verify(folder, shard, hashed=hashed)
    except ShardError as error:
        return str(error)
    return ""


def _over_http(url: str) -> Get:
    def get(name: str, target: Path, progress: Progress) -> None:
        try:
            download(f"{url}/{name}", target, progress)
        except UnreachableError as error:
            raise UserError(_unreadable(url, str(error))) from None

    return get


def _through_fsspec(url: str) -> Get:
    files, root = open_store(url)

    def get(name: str, target: Path, _: Progress) -> None:
        part = target.with_name(f"{target.name}.part")
        try:
            files.get_file(f"{root}/{name}", str(part))
        except Exception as error:  # each store has errors of its own
            part.unlink(missing_ok=True)
            raise UserError(_unreadable(url, f"{name}: {reason(error)}")) from error
        part.replace(target)

    return get


def _unreadable(url: str, why: str) -> str:
    return (
        f"`data` {url}: cannot be read ({why.removesuffix('.')}). Give the URL of a folder that `launch prepare` made, "
        f"with its {INDEX_FILE} and shards, and see that this machine reaches it."
    )
