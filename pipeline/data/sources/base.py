"""What every source gives, and the split of a set that has none of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline import rng
from pipeline.data.skipped import Skipped
from pipeline.errors import UserError

Sample = tuple[NDArray[np.uint8], int]  # image (H, W, C), label

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, total); total 0 where it is not known."""

TEST_SHARE = 0.2
_SPLIT_SEED = 0  # of the data set, not of a run: everybody gets the same test images


class Source(Protocol):
    """A data set before it is prepared."""

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    """(C, H, W) of every image that ``read`` gives."""
    counts: dict[str, int]
    """Samples of ``train`` and ``test``, unreadable ones included."""
    skipped: list[Skipped]
    """What was left out so far; reading adds to it."""
    note: str
    """Where the samples came from, for the index."""

    def read(self, split: str) -> Iterator[Sample]:
        """The samples of ``train`` or ``test`` in their fixed order."""
        ...


def require_pairs(split: str, num_images: int, num_labels: int) -> None:
    """Raises UserError where a split's files of images and of labels hold different numbers."""
    if num_images != num_labels:
        raise UserError(f"{num_images} {split} images but {num_labels} labels: these files do not belong together.")


def holdout_mask(labels: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which samples of a set without a test split become one: 20 % of each class, always the same ones.

    A class of two samples or more keeps at least one on each side.
    """
    labels = np.asarray(labels, dtype=np.int64)
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = round(TEST_SHARE * len(members))
        if len(members) >= 2:
            count = min(max(count, 1), len(members) - 1)
        chosen = rng.generator(_SPLIT_SEED, "test-split", int(label)).permutation(len(members))[:count]
        mask[members[chosen]] = True
    return mask


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody is shown."""
