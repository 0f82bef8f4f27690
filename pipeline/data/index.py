"""The index of a prepared data set: what its shards hold, and hashes to know them by."""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import plain_json
from pipeline.errors import UserError

INDEX_FILE = "index.json"
UNLABELLED = ("unlabelled",)
"""The classes of a set without any."""
FORMAT_VERSION = 1

_LARGEST_SIDE = 1 << 14  # of an image, in pixels
_MOST = 1 << 50  # samples or bytes


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One tar of samples."""

    file: str
    """Name inside the data set's folder."""
    count: int
    """Samples in it."""
    bytes: int
    """Size of the file."""
    sha256: str = ""
    """Of the file's bytes; empty where another tool wrote the index without hashes."""


@dataclass(frozen=True, kw_only=True)
class SplitIndex:
    """The shards of ``train`` or ``test``, in order: sample i of the split is the i-th on disk."""

    count: int
    class_counts: tuple[int, ...]
    shards: tuple[ShardInfo, ...]


@dataclass(frozen=True, kw_only=True)
class DataIndex:
    """What a prepared folder holds. ``mean`` and ``std`` are per channel, of the train images scaled to [0, 1]."""

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    """(C, H, W) of every image."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: Mapping[str, SplitIndex]
    """``train`` and ``test``."""
    skipped: int = 0
    """Files that were left out when the set was prepared; ``skipped.csv`` beside the index lists them."""
    source: str = ""
    """Where the samples came from, in words."""
    resized_from: str = ""
    """Sizes that the images had, in words, width first; empty where all had ``shape``'s, or an older version
    prepared them."""
    format_version: int = FORMAT_VERSION

    @property
    def content_hash(self) -> str:
        """sha256 over classes, shape and the shards' hashes: two sets with the same hash hold the same bytes."""
        shards = {split: [shard.sha256 for shard in info.shards] for split, info in sorted(self.splits.items())}
        text = json.dumps([list(self.classes), list(self.shape), shards], ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def num_bytes(self) -> int:
        """Size of all shards on disk."""
        return sum(shard.bytes for split in self.splits.values() for shard in split.shards)

    def save(self, folder: Path) -> None:
        """Write ``folder/index.json``, whole or not at all."""
        record = asdict(self) | {"splits": {name: asdict(split) for name, split in self.splits.items()}}
        if not self.resized_from:
            del record["resized_from"]  # what was never resized has the index that it always had, byte for byte
        record = {"format_version": record.pop("format_version"), "content_hash": self.content_hash, **record}
        partial = folder / (INDEX_FILE + ".partial")
        with partial.open("w") as file:
            json.dump(record, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / INDEX_FILE)

    @classmethod
    def load(cls, folder: Path) -> DataIndex:
        """Read ``folder/index.json``.

        Raises:
            UserError: there is no index, it cannot be parsed, its version is unknown, or it contradicts itself.
        """
        path = folder / INDEX_FILE
        try:
            record = plain_json.read(path)
        except FileNotFoundError:
            raise UserError(f"{folder} has no {INDEX_FILE}: it is not a prepared data set. {_AGAIN}") from None
        except (OSError, ValueError) as cause:
            raise UserError(f"{path} cannot be read ({cause}). {_AGAIN}") from None
        version = record.get("format_version") if isinstance(record, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {reprlib.repr(version)}; this program reads version {FORMAT_VERSION}. "
                f"{_AGAIN}"
            )
        try:
            index = _parse(record)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as cause:
            raise UserError(f"{path} is not a whole index ({type(cause).__name__}: {cause}). {_AGAIN}") from None
        problem = _contradiction(index, record.get("content_hash"))
        if problem:
            raise UserError(f"{path} contradicts itself: {problem}. {_AGAIN}")
        return index


_AGAIN = "Prepare it again with `launch prepare NAME`, or give the folder of images or shards itself."


def _parse(record: dict[str, Any]) -> DataIndex:
    channels, height, width = (int(size) for size in record["shape"])
    return DataIndex(
        name=str(record["name"]),
        classes=tuple(str(name) for name in record["classes"]),
        shape=(channels, height, width),
        mean=tuple(float(value) for value in record["mean"]),
        std=tuple(float(value) for value in record["std"]),
        splits={str(name): _parse_split(split) for name, split in record["splits"].items()},
        skipped=int(record.get("skipped", 0)),
        source=str(record.get("source", "")),
        resized_from=str(record.get("resized_from", "")),
    )


def _parse_split(record: dict[str, Any]) -> SplitIndex:
    return SplitIndex(
        count=int(record["count"]),
        class_counts=tuple(int(count) for count in record["class_counts"]),
        shards=tuple(
            ShardInfo(
                file=str(shard["file"]),
                count=int(shard["count"]),
                bytes=int(shard["bytes"]),
                sha256=str(shard.get("sha256") or ""),
            )
            for shard in record["shards"]
        ),
    )


def _contradiction(index: DataIndex, content_hash: object) -> str | None:
    if set(index.splits) != {"train", "test"}:
        return f"it has the splits {sorted(index.splits)}, not train and test"
    if min(index.shape) < 1 or max(index.shape) > _LARGEST_SIDE:
        return f"it has images of {reprlib.repr(index.shape)}, channels, height and width from 1 to {_LARGEST_SIDE:,}"
    if not index.classes:
        return "it names no classes"
    if len(index.mean) != index.shape[0] or len(index.std) != index.shape[0]:
        return f"{len(index.mean)} means and {len(index.std)} deviations for {index.shape[0]} channels"
    for name, split in index.splits.items():
        counts = [split.count, *split.class_counts, *(shard.count for shard in split.shards)]
        sizes = [shard.bytes for shard in split.shards]
        if not all(0 <= value <= _MOST for value in (*counts, *sizes)):
            return f"{name} has a count below 0 or above {_MOST:,}"
        if any(shard.bytes < shard.count for shard in split.shards):
            return f"{name} has a shard with more samples than bytes"
        total = sum(shard.count for shard in split.shards)
        if total != split.count:
            return f"{name} counts {split.count} samples, its shards {total}"
        for shard in split.shards:
            # The name is joined to the folder: it must not lead out of it.
            if Path(shard.file).name != shard.file:
                return f"shard {shard.file!r} is not a plain file name"
    if content_hash is not None and content_hash != index.content_hash:
        return "the content hash does not fit the shards' hashes"
    return None
