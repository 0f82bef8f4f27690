"""WebDataset shards: tars of ``train-00000012.png`` + ``train-00000012.cls``, equal bytes for equal data.

Written and streamed by the webdataset package. For training they are also read at random: a scan of the tar's headers
gives every image's offset, so that a feeder touches only the samples of its own batches.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import webdataset
from numpy.typing import NDArray
from PIL import Image

from pipeline import plain_json
from pipeline.data import archives
from pipeline.data.index import ShardInfo
from pipeline.errors import UserError

Pixels = NDArray[np.uint8]

SAMPLES_PER_SHARD = 5000
IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp", "ppm", "pgm", "gif", "tif", "tiff")
LABEL_EXTENSIONS = ("cls", "json")
LARGEST_IMAGE_FILE = 64 << 20
"""Bytes of one member at most, packed as it is."""

_BLOCK = 512  # a tar is made of blocks of this many bytes
_SHOWN = 40  # bytes of a bad label
_LARGEST_LABEL = 1 << 20  # bytes; a .json may describe its image at length
_META = re.compile(r"__[^/]*__($|/)")  # webdataset's own members, which are no samples
_LABEL_KEYS = ("label", "cls", "class", "target")


class ShardError(Exception):
    """A shard that cannot be used; the message is a clause such as "is truncated (…)"."""


class WrongSizeError(Exception):
    """An image of another size than its data set's.

    Attributes:
        size: (width, height).
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__(size)
        self.size = size


class SplitWriter:
    """Writes one split's samples into shards of ``SAMPLES_PER_SHARD``.

    Owner, mode and time of every member are fixed: the same samples give the same bytes.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self._folder = folder
        self._split = split
        self._count = 0
        self._open: tuple[_Sink, Any, Path] | None = None  # (file, tar writer, path)
        self._done: list[ShardInfo] = []

    def write(self, image: Pixels, label: int) -> None:
        """Append ``image`` (H, W, C) with its label."""
        if self._count % SAMPLES_PER_SHARD == 0:
            self._finish()
            path = self._folder / f"{self._split}-{self._count // SAMPLES_PER_SHARD:06d}.tar"
            sink = _Sink(path)
            self._open = (sink, webdataset.TarWriter(sink, user="", group="", mode=0o644, mtime=0), path)
        assert self._open is not None
        key = f"{self._split}-{self._count:08d}"
        self._open[1].write({"__key__": key, "png": encode_png(image), "cls": str(label).encode()})
        self._count += 1

    def close(self) -> tuple[ShardInfo, ...]:
        """Finish the last shard; what was written."""
        self._finish()
        return tuple(self._done)

    def abort(self) -> None:
        """Let go of an unfinished shard after a failure."""
        if self._open is None:
            return
        sink, writer, _ = self._open
        self._open = None
        sink.discard()
        writer.close()

    def _finish(self) -> None:
        if self._open is None:
            return
        sink, writer, path = self._open
        writer.close()
        sink.finish()
        self._open = None
        count = self._count - sum(shard.count for shard in self._done)
        self._done.append(
            ShardInfo(file=path.name, count=count, bytes=path.stat().st_size, sha256=file_hash(path, "sha256"))
        )


class _Sink:
    """A file that a tar writer can still be closed onto after a failure: its last writes then go nowhere.

    tarfile writes its end mark when it is collected, and would complain about a closed file or a full disk once more.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._discarded = False

    def write(self, data: bytes) -> int:
        return len(data) if self._discarded else self._file.write(data)

    def finish(self) -> None:
        """Have it on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        self._discarded = True
        with contextlib.suppress(OSError):  # what is still buffered may not fit the disk either
            self._file.close()


def file_hash(path: Path, algorithm: str) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def encode_png(image: Pixels) -> bytes:
    """PNG bytes of ``image`` (H, W, C) with C of 1 or 3."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    picture.save(buffer, format="PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


# Small images gain little from harder compression (a tar member is padded to 512 bytes anyway) and decode faster so.
_PNG_LEVEL = 1


def decode(data: bytes, shape: tuple[int, int, int]) -> Pixels:
    """Image bytes to ``shape`` (C, H, W) uint8, grey or RGB as C asks for.

    Raises:
        WrongSizeError: its header says another height and width; nothing was decoded.
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: not a readable image (Pillow's own errors).
    """
    channels, height, width = shape
    with Image.open(io.BytesIO(data)) as picture:
        if picture.size != (width, height):
            raise WrongSizeError(picture.size)
        mode = "L" if channels == 1 else "RGB"
        pixels = np.asarray(picture if picture.mode == mode else picture.convert(mode))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def parse_label(data: bytes, extension: str) -> int:
    """The class number in a ``.cls`` (decimal text) or ``.json`` (a number, or an object with a label) member.

    Raises:
        ValueError: there is none, or it is not to be read: too long, or too deep.
    """
    if len(data) > _LARGEST_LABEL:
        raise ValueError(f"it has {len(data):,} bytes, at most {_LARGEST_LABEL:,} are read")
    if extension == "cls":
        try:
            return int(data)
        except ValueError:
            raise ValueError(f"{data[:_SHOWN].decode('utf-8', 'backslashreplace')!r} is no whole number") from None
    value = plain_json.parse(data, allow_nan=True)
    if isinstance(value, dict):
        value = next((value[key] for key in _LABEL_KEYS if key in value), None)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"no whole number under any of {', '.join(_LABEL_KEYS)}")


def stream(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Samples of the shards as webdataset reads them, in order: ``__key__`` and a bytes entry for each extension.

    Raises:
        archives.UnfitError: a member is sparse or larger than ``LARGEST_IMAGE_FILE``; nothing of it was read.
        one of ``archives.DAMAGED``: a shard is no whole tar.
    """
    for path in paths:
        yield from webdataset.tariterators.group_by_keys(_files(path))


def _files(path: Path) -> Iterator[dict[str, Any]]:
    """The files of a tar as webdataset's own reader gives them, which would read members of any size."""
    for member, contents in archives.tar_members(path, largest=LARGEST_IMAGE_FILE):
        if not _META.match(member.name):
            yield {"fname": member.name, "data": contents.read(), "__url__": str(path)}


class ChangedError(Exception):
    """A shard has been written since it was scanned: it may hold something else now."""


@dataclass(frozen=True)
class ShardTable:
    """Where a shard's samples lie: ``keys``, ``offsets``, ``sizes`` and ``labels``, one entry a sample.

    Attributes:
        stamp: the file's size and time of change when it was scanned.
    """

    path: Path
    keys: tuple[str, ...]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]
    stamp: tuple[int, int]


def scan(path: Path) -> ShardTable:
    """Read a shard's headers and labels, not its images.

    Raises:
        ShardError: truncated, not a tar, or a sample without image or label.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                raise ShardError("is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                for name, offset, size in _members(data):
                    key, _, extension = name.partition(".")
                    samples.setdefault(key, {})[extension.lower()] = (offset, size)
                return _table(path, samples, data, _stamp(file))
    except OSError as cause:
        raise ShardError(f"cannot be read ({cause.strerror or cause})") from None


def _members(data: mmap.mmap) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of the plain files of a tar."""
    at, end = 0, len(data)
    while True:
        header = data[at : at + _BLOCK]
        if len(header) < _BLOCK:
            raise ShardError(f"is truncated (it ends at byte {end} without a tar's end mark)")
        if header[0] == 0:
            return
        try:
            size = int(header[124:136].rstrip(b"\0 ") or b"0", 8)
            checksum = int(header[148:156].rstrip(b"\0 "), 8)
        except ValueError:
            raise ShardError(f"is corrupt (no tar header at byte {at})") from None
        if size < 0:
            raise ShardError(f"is corrupt (a negative size in the tar header at byte {at})")
        if checksum != sum(header[:148]) + sum(header[156:]) + 8 * 32:
            raise ShardError(f"is corrupt (wrong checksum of the tar header at byte {at})")
        start = at + _BLOCK
        at = start + -(-size // _BLOCK) * _BLOCK
        if at > end:
            raise ShardError(f"is truncated (a member ends at byte {at}, the file at {end})")
        if header[156:157] in (b"0", b"\0"):
            yield _text(header[:100]), start, size


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def _stamp(file: BinaryIO) -> tuple[int, int]:
    said = os.fstat(file.fileno())
    return said.st_size, said.st_mtime_ns


def _table(
    path: Path, samples: dict[str, dict[str, tuple[int, int]]], data: mmap.mmap, stamp: tuple[int, int]
) -> ShardTable:
    spans = np.empty((len(samples), 2), dtype=np.int64)
    labels = np.empty(len(samples), dtype=np.int64)
    for row, (key, parts) in enumerate(samples.items()):
        image = next((parts[extension] for extension in IMAGE_EXTENSIONS if extension in parts), None)
        label = next((extension for extension in LABEL_EXTENSIONS if extension in parts), None)
        if image is None or label is None:
            raise ShardError(f"has sample {key!r} without {'an image' if image is None else 'a label'}")
        offset, size = parts[label]
        if max(size, image[1]) > LARGEST_IMAGE_FILE:
            raise ShardError(f"has sample {key!r} of more than {LARGEST_IMAGE_FILE:,} bytes")
        try:
            labels[row] = parse_label(data[offset : offset + size], label)
        except (ValueError, OverflowError) as cause:
            raise ShardError(f"has sample {key!r} with an unreadable label ({cause})") from None
        spans[row] = image
    return ShardTable(path, tuple(samples), spans[:, 0].copy(), spans[:, 1].copy(), labels, stamp)


def verify(folder: Path, info: ShardInfo, *, hashed: bool) -> None:
    """Check that the shard is there, of the right size and, with ``hashed``, of the right bytes.

    Raises:
        ShardError: it is not.
    """
    path = folder / info.file
    try:
        size = path.stat().st_size
        if size < info.bytes:
            raise ShardError(f"is truncated ({size} of {info.bytes} bytes)")
        if size > info.bytes:
            raise ShardError(f"is corrupt ({size} bytes instead of {info.bytes})")
        if hashed and info.sha256 and file_hash(path, "sha256") != info.sha256:
            raise ShardError("is corrupt (its sha256 is not the index's)")
    except FileNotFoundError:
        raise ShardError("is missing") from None
    except OSError as cause:
        raise ShardError(f"cannot be read ({cause.strerror or cause})") from None


def check_labels(table: ShardTable, num_classes: int) -> None:
    """Refuse labels outside 0 … num_classes-1.

    Raises:
        UserError: names shard, sample and label.
    """
    wrong = np.flatnonzero((table.labels < 0) | (table.labels >= num_classes))
    if len(wrong):
        first = int(wrong[0])
        raise UserError(
            f"{table.path}: sample {table.keys[first]!r} has label {table.labels[first]}, outside 0 … "
            f"{num_classes - 1} ({len(wrong)} such in this shard). Correct the labels or the index's classes."
        )


def read_images(table: ShardTable, rows: NDArray[np.int64], shape: tuple[int, int, int], out: Pixels) -> None:
    """Decode the samples ``rows`` of a shard into ``out`` (len(rows), C, H, W).

    Raises:
        UserError: an image cannot be read or has another shape; names shard and sample.
        ChangedError: the file has been written since it was scanned.
    """
    try:
        with table.path.open("rb") as file:
            if _stamp(file) != table.stamp:
                raise ChangedError
            for image_out, row in zip(out, rows, strict=True):
                file.seek(int(table.offsets[row]))
                data = file.read(int(table.sizes[row]))
                try:
                    image_out[...] = decode(data, shape)
                except WrongSizeError as cause:
                    width, height = cause.size
                    raise UserError(
                        f"{table.path}: sample {table.keys[row]!r} is {height}x{width}, the data set's images are "
                        f"{shape[1]}x{shape[2]}. Prepare the data set again."
                    ) from None
                except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as cause:
                    raise UserError(
                        f"{table.path}: the image of sample {table.keys[row]!r} cannot be read ({cause}). "
                        "Prepare the data set again."
                    ) from None
    except OSError as cause:
        raise UserError(f"{table.path} cannot be read ({cause.strerror or cause}). Is the disk still there?") from None
