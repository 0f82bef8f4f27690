"""Decoded images that stay on the first stage's device: each travels there once, from then on only its number does.

Who reads and who keeps agree without asking each other: both go through the same passes in the same order, so what a
pass before has had is known to either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from pipeline.data.loader import Batch, Dataset, DiskSplit, Split


class NewImages:
    """The batches of a data set with those images alone that no pass before has had; of all feeders' parts together.

    Every feeder has one of its own, and is asked for its part of every pass.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._had = {split: np.zeros(count, dtype=bool) for split, count in dataset.counts_on_disk.items()}

    def batches(
        self, split: Split, *, epoch: int, batch_size: int, part: tuple[int, int] = (0, 1), first: int = 0
    ) -> Iterator[Batch]:
        """As ``Dataset.batches``."""
        had = self._had[self._dataset.on_disk(split)]
        yield from self._dataset.batches(split, epoch=epoch, batch_size=batch_size, part=part, first=first, without=had)
        had[self._dataset.pass_ids(split, epoch=epoch, batch_size=batch_size, first=first)] = True


class KeptImages:
    """All images of a data set on a device, as they come.

    Args:
        counts: images of each split on disk.
        shape: (C, H, W) of an image.
    """

    def __init__(self, counts: Mapping[DiskSplit, int], shape: tuple[int, int, int], device: torch.device) -> None:
        self._images = {
            split: torch.empty(count, *shape, dtype=torch.uint8, device=device) for split, count in counts.items()
        }

    def add(self, split: DiskSplit, images: Tensor, ids: Tensor) -> None:
        """Keeps images (M, C, H, W) uint8 as those with these ids (M,), each at most once. Waits for no GPU."""
        kept = self._images[split]
        kept.index_copy_(0, ids.to(kept.device, non_blocking=True), images.to(kept.device, non_blocking=True))

    def batch(self, split: DiskSplit, ids: Tensor) -> Tensor:
        """The images with these ids (N,): (N, C, H, W) uint8 on the device. All of them have been added."""
        kept = self._images[split]
        return kept.index_select(0, ids.to(kept.device, non_blocking=True))
