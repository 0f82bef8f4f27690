"""What a data set was prepared or opened without: every file with its reason, listed in ``skipped.csv``."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SKIPPED_FILE = "skipped.csv"

_COLUMNS = ["file", "reason"]
_NAMED = 3  # files that ``by_reason`` names for each reason


@dataclass(frozen=True)
class Skipped:
    """One file, or one sample of a shard, that was left out."""

    file: str
    """Its path; of a sample "SHARD: KEY"."""
    reason: str
    """What is the matter, then ": " and more about it where there is more: "unreadable image: the file is empty"."""

    @property
    def matter(self) -> str:
        """The reason without what is particular to this file."""
        return self.reason.partition(": ")[0]

    @property
    def short(self) -> str:
        """The file's name with the folder that it is in: a class, as a rule."""
        return "/".join(Path(self.file).parts[-2:])


def skip(path: Path, matter: str, detail: str = "", *, sample: str = "") -> Skipped:
    """The record of a file, or with ``sample`` of one key in a shard. Names that are no Unicode are escaped."""
    name = os.fsencode(path).decode("utf-8", "backslashreplace")
    return Skipped(f"{name}: {sample}" if sample else name, f"{matter}: {detail}" if detail else matter)


def save(file: Path, skipped: Iterable[Skipped]) -> None:
    """Writes the list. Raises OSError."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(_COLUMNS)
        writer.writerows([one.file, one.reason] for one in skipped)


def load(folder: Path) -> tuple[Skipped, ...] | None:
    """The list beside a prepared set's shards; None where there is none that can be read, as in older sets."""
    try:
        with (folder / SKIPPED_FILE).open(newline="", encoding="utf-8") as opened:
            return tuple(Skipped(row["file"], row["reason"]) for row in csv.DictReader(opened))
    except (OSError, KeyError, UnicodeDecodeError, csv.Error):
        return None


def by_reason(skipped: Sequence[Skipped]) -> str:
    """How many for which reason, with the first names: "unreadable image: 2 (cat/7.png, dog/3.png); …"."""
    groups: dict[str, list[str]] = {}
    for one in skipped:
        groups.setdefault(one.matter, []).append(one.short)
    return "; ".join(
        f"{matter}: {len(names):,} ({', '.join(names[:_NAMED])}{', …' if len(names) > _NAMED else ''})"
        for matter, names in groups.items()
    )
