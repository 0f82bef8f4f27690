"""An operation without a deterministic kernel, told to a person."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import NondeterministicError

_NONE = re.compile(r"(?P<operation>\S+) does not have a deterministic implementation")


@contextmanager
def operations_named(layer: int) -> Iterator[None]:
    """PyTorch's error for an operation that has no deterministic kernel, as one that names layer and setting.

    Args:
        layer: 0-based index.

    Raises:
        NondeterministicError: the operation is used.
    """
    try:
        yield
    except RuntimeError as error:
        found = _NONE.search(str(error))
        if found is None:
            raise
        raise NondeterministicError(layer, found["operation"]) from error
