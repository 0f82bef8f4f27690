"""Published tars, read in one pass."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Collection
from pathlib import Path

from pipeline.errors import UserError


def read_members(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """The bytes of the files of these names, in whatever folder, in a tar (gzipped or not).

    What lies behind the last of them is not unpacked.

    Raises:
        UserError: it is not a whole tar.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                last = member.name.rpartition("/")[2]
                if member.isfile() and last in names:
                    file = archive.extractfile(member)
                    assert file is not None, "a plain file has contents"
                    found[last] = file.read()
                    if len(found) == len(names):
                        break
    except (tarfile.TarError, EOFError, zlib.error, OSError) as cause:
        raise UserError(f"{path} is not a whole tar archive ({cause}). Get it again.") from None
    return found
