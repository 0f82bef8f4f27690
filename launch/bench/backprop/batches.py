"""Batches for ranks: a few kept in memory, or those that a process in the background reads."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from launch.bench.backprop.job import Job
from pipeline.data.loader import Batch, Dataset
from pipeline.kind import Kind
from pipeline.methods import BatchPosition

_IN_MEMORY = 4  # batches kept, at most


@dataclass(frozen=True)
class Portion:
    """What a rank gets of a batch. Images (n, C, H, W) uint8 and labels (n,), None where the rank needs none.

    ``where`` is the position of its own first image.
    """

    images: Tensor | None
    labels: Tensor | None
    where: BatchPosition


class Portions(Protocol):
    """Where a rank takes its portions from, one after the other without an end."""

    def take(self) -> Portion: ...


class PortionsInMemory:
    """A few portions over and over. Augmentation goes on as if they were new.

    Args:
        portions: a rank's, of the first batches of epoch 0.
    """

    def __init__(self, job: Job, rank: int, portions: Sequence[Portion]) -> None:
        self._job, self._first_row, self._portions = job, job.rows(rank).start, portions
        self._taken = 0

    def take(self) -> Portion:
        kept = self._portions[self._taken % len(self._portions)]
        epoch, step = divmod(self._taken, self._job.spec.steps_per_epoch)
        self._taken += 1
        position = step * self._job.batch_size + self._first_row
        return replace(kept, where=self._job.spec.batch_position(Kind.TRAIN, epoch, step, position))


class PortionsFromLoader:
    """Portions that the loader put into a queue."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def take(self) -> Portion:
        portion: Portion = self._queue.get()
        return portion


def in_memory(job: Job, dataset: Dataset) -> list[Portions]:
    """Each rank's portions of the same few batches."""
    batches = list(itertools.islice(dataset.batches("train", epoch=0, batch_size=job.batch_size), _IN_MEMORY))
    return [
        PortionsInMemory(job, rank, [portion_of(job, rank, batch, epoch=0) for batch in batches])
        for rank in range(job.num_ranks)
    ]


def portion_of(job: Job, rank: int, batch: Batch, epoch: int) -> Portion:
    """What a rank gets of a batch of an epoch."""
    rows = job.rows(rank)
    return Portion(
        images=batch.images[rows] if job.sees_images(rank) else None,
        labels=batch.labels[rows] if job.sees_labels(rank) else None,
        where=job.spec.batch_position(Kind.TRAIN, epoch, batch.step, batch.position + rows.start),
    )
