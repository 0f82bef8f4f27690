"""JSON that others may have written: a bounded size, bounded nesting, and numbers that are numbers.

Python's own reader takes NaN, runs out of its stack on brackets within brackets, and refuses integers of many digits
with advice for programmers.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

LARGEST = 64 << 20
"""Bytes of a file that is read at most. The index of ImageNet in shards has less than one MiB."""

DEEPEST = 32
"""Tables and lists within one another. What this project writes has 6."""

_DIGITS = 100  # of a whole number; a seed of 64 bits has 20

_Pairs = Callable[[list[tuple[str, Any]]], Any]


def parse(text: str | bytes, *, allow_nan: bool = False, object_pairs_hook: _Pairs | None = None) -> Any:
    """The value of a JSON text.

    Args:
        allow_nan: take NaN and Infinity, which are not JSON but which many programs write.
        object_pairs_hook: as of ``json.loads``.

    Raises:
        ValueError: it is no JSON, too deep, or has numbers that are none; the message is a clause.
    """
    constant = None if allow_nan else _refuse_constant
    try:
        value = json.loads(text, parse_int=_whole, parse_constant=constant, object_pairs_hook=object_pairs_hook)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    inside = [value]
    for _ in range(DEEPEST):
        inside = [child for each in inside for child in _children(each)]
        if not inside:
            return value
    raise ValueError(_TOO_DEEP)


def read(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        OSError: it cannot be read, or is a pipe, for which one would wait, or a device.
        ValueError: as ``parse``, or it is larger than ``LARGEST``.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise OSError("no regular file")
    if found.st_size > LARGEST:
        raise ValueError(f"it has {found.st_size:,} bytes, at most {LARGEST:,} are read")
    return parse(path.read_text())


_TOO_DEEP = f"tables and lists lie more than {DEEPEST} deep in one another"


def _children(value: Any) -> list[Any]:
    """The tables and lists in a table or list."""
    if not isinstance(value, (dict, list)):
        return []
    return [
        child for child in (value.values() if isinstance(value, dict) else value) if isinstance(child, (dict, list))
    ]


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"it holds a number of {len(digits):,} digits, at most {_DIGITS} are read")
    return int(digits)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is no number")
