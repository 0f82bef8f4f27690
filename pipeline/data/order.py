"""Which samples a run trains on and in which order: functions of seed, epoch and shard sizes, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline import rng

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Division:
    """The training split of the disk divided for a run; both ascending sample ids."""

    train: Ids
    validate: Ids


def divide(count: int, *, seed: int, validation: float, train_fraction: float) -> Division:
    """Take ``validation`` of ``count`` samples to validate, and of the rest keep ``train_fraction``.

    Source: Aghagolzadeh & Ezoji 2025, Table 4, M %.
    """
    mixed = rng.generator(seed, "validation-split").permutation(count)
    num_validate = round(validation * count)
    rest = np.sort(mixed[num_validate:])
    kept = rng.generator(seed, "train-fraction").permutation(len(rest))[: round(train_fraction * len(rest))]
    return Division(train=rest[np.sort(kept)], validate=np.sort(mixed[:num_validate]))


def label_shifts(train: Ids, count: int, *, seed: int, share: float, num_classes: int) -> NDArray[np.int64] | None:
    """Label noise: what to add, modulo the number of classes, to each label; (count,), or None for none.

    ``share`` of the train samples get another class, each of the others equally likely; all else gets 0.
    """
    if share == 0 or num_classes < 2:
        return None
    random = rng.generator(seed, "label-noise")
    chosen = train[random.permutation(len(train))[: round(share * len(train))]]
    shifts = np.zeros(count, dtype=np.int64)
    # Drawn for every sample, so that which class a sample gets does not depend on which others are chosen.
    shifts[chosen] = rng.generator(seed, "label-noise-class").integers(1, num_classes, size=count)[chosen]
    return shifts


def epoch_order(shard_sizes: Sequence[int], selected: Ids, *, seed: int, epoch: int, shuffle_window: int) -> Ids:
    """The order of an epoch: a permutation of ``selected`` (ascending sample ids).

    The shards are permuted; consecutive ones join into windows of at most ``shuffle_window`` selected samples (at least
    one shard); within a window the samples are permuted. So a window's shards are all that is read at a time.
    """
    windows = list(_windows(shard_sizes, selected, seed=seed, epoch=epoch, shuffle_window=shuffle_window))
    for number, window in enumerate(windows):
        rng.generator(seed, "window-order", epoch, number).shuffle(window)
    return np.concatenate(windows) if windows else np.empty(0, dtype=np.int64)


def _windows(
    shard_sizes: Sequence[int], selected: Ids, *, seed: int, epoch: int, shuffle_window: int
) -> Iterator[NDArray[np.int64]]:
    bounds = np.searchsorted(selected, np.concatenate([[0], np.cumsum(shard_sizes)]))
    gathered: list[Ids] = []
    total = 0
    for shard in rng.generator(seed, "shard-order", epoch).permutation(len(shard_sizes)):
        piece = selected[bounds[shard] : bounds[shard + 1]]
        if gathered and total + len(piece) > shuffle_window:
            yield np.concatenate(gathered)
            gathered, total = [], 0
        gathered.append(piece)
        total += len(piece)
    if gathered:
        yield np.concatenate(gathered)
