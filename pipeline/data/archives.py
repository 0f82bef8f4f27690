"""Archives that others made, unpacked within bounds: each is looked at before memory is taken for it.

A few bytes of gzip unpack to gigabytes, and a sparse member of a tar claims whatever size it likes.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, cast

LARGEST_MEMBER = 256 << 20
"""Bytes of one file of a published archive at most. The largest of those known, of STL-10, has 211 MiB."""

_HEADER = 1 << 20  # bytes that tarfile reads at once for a header, which may hold long names
_READS = 1000  # by tarfile for one member's headers, or for its contents
_FLOOR, _RATIO = 1 << 30, 20  # a gzip unpacks to at most so many bytes, and so many times its own size beyond them
_GZIP = b"\x1f\x8b"
_SHOWN = 60  # characters of a member's name

DAMAGED = (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, RecursionError, zlib.error)
"""What reading a tar or a gzip that is cut off or altered raises."""


class UnfitError(ValueError):
    """An archive that is not to be unpacked; the message is a clause such as "unpacks to more than …"."""


def tar_members(
    path: Path, names: Collection[str] | None = None, *, largest: int = LARGEST_MEMBER
) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """The plain files of a tar, gzipped or not, each with its contents to be read before the next is asked for.

    Args:
        names: of the files that are wanted, in whatever folder; None: all.
        largest: bytes of a wanted file at most.

    Raises:
        UnfitError: a wanted file is sparse or larger, or all of it is larger than is plausible; nothing of it was read.
        one of ``DAMAGED``: it is no whole tar.
    """
    with path.open("rb") as packed:
        size = packed.seek(0, 2)
        packed.seek(0)
        gzipped = packed.read(len(_GZIP)) == _GZIP
        packed.seek(0)
        data = _Bounded(gzip.GzipFile(fileobj=packed), _FLOOR + _RATIO * size) if gzipped else _Bounded(packed)
        with tarfile.TarFile(fileobj=cast("IO[bytes]", data)) as archive:
            while (member := archive.next()) is not None:
                vars(archive)["members"].clear()  # it would keep them all; the attribute is not in its types
                if member.size < 0:  # it would go back, and round in circles
                    raise UnfitError("is corrupt (a negative size)")
                if member.isreg() and (names is None or member.name.rpartition("/")[2] in names):
                    _check(member, largest)
                    data.allow(member.size)
                    contents = archive.extractfile(member)
                    assert contents is not None, "a plain file has contents"
                    yield member, contents
                data.allow(_HEADER)


def gunzip(path: Path, *, largest: int = LARGEST_MEMBER) -> bytes:
    """A file's bytes, gunzipped where they are gzipped (by content, not by name).

    Args:
        largest: bytes at most.

    Raises:
        UnfitError: there are more; no more than ``largest`` were read.
        one of ``DAMAGED``: the gzip is not whole.
    """
    with path.open("rb") as packed:
        gzipped = packed.read(len(_GZIP)) == _GZIP
        packed.seek(0)
        if not gzipped and packed.seek(0, 2) > largest:
            raise UnfitError(f"has more than {largest:,} bytes")
        packed.seek(0)
        data = gzip.GzipFile(fileobj=packed).read(largest + 1) if gzipped else packed.read()
    if len(data) > largest:
        raise UnfitError(f"unpacks to more than {largest:,} bytes")
    return data


def _check(member: tarfile.TarInfo, largest: int) -> None:
    name = member.name if len(member.name) <= _SHOWN else f"{member.name[:_SHOWN]}…"
    if member.issparse():
        raise UnfitError(f"holds {name!r} as a sparse file, whose size is only claimed")
    if member.size > largest:
        raise UnfitError(f"holds {name!r} of {member.size:,} bytes, at most {largest:,} are read")


class _Bounded:
    """What tarfile needs of a file, with bounds on what it reads, and on how far the file is unpacked."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, limit: int | None = None) -> None:
        self._file, self._limit = file, limit
        self.allow(_HEADER)

    def allow(self, size: int) -> None:
        """From now on bytes of a read at most, for a member's contents or the headers of the next one."""
        self._at_once, self._reads = size, 0

    def read(self, size: int) -> bytes:
        self._reads += 1
        if not 0 <= size <= self._at_once or self._reads > _READS:
            raise UnfitError("is corrupt (a header that is too long)")
        self._check(self.tell())
        return self._file.read(size)

    def seek(self, offset: int) -> int:
        self._check(offset)
        return self._file.seek(offset)

    def tell(self) -> int:
        return self._file.tell()

    def _check(self, offset: int) -> None:
        if self._limit is not None and offset > self._limit:
            raise UnfitError(f"unpacks to more than {self._limit:,} bytes")
