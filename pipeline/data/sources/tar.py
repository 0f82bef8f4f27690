"""Published tars, read in one pass."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pipeline.data import archives
from pipeline.errors import UserError


def read_members(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """The bytes of the files of these names, in whatever folder, in a tar (gzipped or not).

    What lies behind the last of them is not unpacked.

    Raises:
        UserError: it is not a whole tar, or one of these is larger than any that was published.
    """
    found: dict[str, bytes] = {}
    try:
        for member, contents in archives.tar_members(path, names):
            last = member.name.rpartition("/")[2]
            found[last] = contents.read()
            if len(found) == len(names):
                break
    except archives.UnfitError as cause:
        raise UserError(f"{path} {cause}: this is not what was published. Get it again.") from None
    except archives.DAMAGED as cause:
        raise UserError(f"{path} is not a whole tar archive ({cause}). Get it again.") from None
    return found
