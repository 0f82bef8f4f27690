"""A data set's published files in the place where they were found: looked for by name, checked by md5."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from pipeline.data.registry import DataLocation, DatasetFacts
from pipeline.data.shards import file_hash
from pipeline.errors import UserError

ARCHIVES = (".tar.gz", ".zip")

_DEPTH = 6  # levels of folders in which files are looked for


def files_in(location: DataLocation) -> dict[str, Path]:
    """Every file that the site offers, by name. Raises UserError where one is not there, or not as published."""
    facts = location.facts
    if location.path.is_file():
        number = {2: "two", 3: "three", 4: "four"}.get(len(facts.downloads), str(len(facts.downloads)))
        raise UserError(f"{facts.name} is {number} files: give {wanted(facts)}, not {location.path}.")
    found = find(location.path, {file.name for file in facts.downloads})
    for published in facts.downloads:
        if published.name not in found:
            raise UserError(f"{location.path} does not hold {published.name}. Give {wanted(facts)}.")
        md5 = file_hash(found[published.name], "md5")
        if md5 != published.md5:
            raise wrong_md5(found[published.name], md5, [published.md5])
    return found


def archive_in(location: DataLocation) -> Path | None:
    """The published archive, whatever its name is where it was given itself; None where a folder holds none.

    Raises:
        UserError: its md5 is not published.
    """
    published = [file for file in location.facts.published().values() if file.name.endswith(ARCHIVES)]
    path: Path | None = location.path
    if location.path.is_dir():
        path = next(iter(find(location.path, {file.name for file in published}).values()), None)
    if path is not None:
        md5, allowed = file_hash(path, "md5"), [file.md5 for file in published]
        if md5 not in allowed:
            raise wrong_md5(path, md5, allowed)
    return path


def check_members(location: DataLocation, members: Mapping[str, bytes]) -> None:
    """Of an unpacked archive, those whose md5 is published. Raises UserError where one differs."""
    published = location.facts.published()
    for name, data in members.items():
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if name in published and md5 != published[name].md5:
            raise wrong_md5(location.path / name, md5, [published[name].md5])


def find(folder: Path, names: set[str]) -> dict[str, Path]:
    """Where files of these names are under a folder; the shallowest, then alphabetically first, of several."""
    found: dict[str, Path] = {}
    level = [folder]
    for _ in range(_DEPTH):
        entries = sorted((entry for each in level for entry in os.scandir(each)), key=lambda entry: entry.path)
        for entry in entries:
            if entry.name in names and entry.is_file():
                found.setdefault(entry.name, Path(entry.path))
        level = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return found


def wanted(facts: DatasetFacts) -> str:
    """What a person can give as ``source``, in words."""
    names = [file.name for file in facts.downloads]
    names += [file.name for file in facts.accepted if file.name.endswith(ARCHIVES)]
    if all(name.endswith(".gz") and not name.endswith(ARCHIVES) for name in names):
        return f"a folder with {', '.join(names)} (gzipped or raw)"
    if len(facts.downloads) > 1:
        return f"a folder with {' and '.join(names)}"
    return " or ".join(names)


def wrong_md5(path: Path, md5: str, allowed: list[str]) -> UserError:
    """What to raise for a file that is not as published."""
    return UserError(
        f"{path} is not the published file: its md5 is {md5}, published is {' or '.join(allowed)}. Get it again."
    )
