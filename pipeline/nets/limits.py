"""What the sizes of a net may be, so that a number typed with too many digits is a sentence and not a full machine."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.errors import UserError, shortened

WIDEST = 1 << 16
"""Units, channels or length of a token at most: a matrix of so many squared has 16 GiB in float32."""

DEEPEST = 1 << 12
"""Layers at most, each of which is built and placed."""


def check_sizes(*sizes: tuple[str, int]) -> None:
    """Refuses widths outside 1 … ``WIDEST``, given as a setting's name and its value each. Raises UserError."""
    _check(sizes, WIDEST)


def check_depth(name: str, layers: int) -> None:
    """Refuses numbers of layers outside 1 … ``DEEPEST``. Raises UserError."""
    _check([(name, layers)], DEEPEST)


def _check(sizes: Iterable[tuple[str, int]], most: int) -> None:
    for name, value in sizes:
        if not 1 <= value <= most:
            raise UserError(f"`{name}` {shortened(value)}: must be at least 1 and at most {most:,}.")
