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


def divide(count: int, labels: Ids | None, *, seed: int, validation: float, train_fraction: float) -> Division:
    """Take ``validation`` of ``count`` samples to validate, and of the rest keep ``train_fraction`` of every class.

    Source: Aghagolzadeh & Ezoji 2025, Table 4, M %.

    Args:
        labels: class of every sample (count,); needed where a part of the samples is kept.
    """
    mixed = rng.generator(seed, "validation-split").permutation(count)
    num_validate = round(validation * count)
    validate, rest = np.sort(mixed[:num_validate]), np.sort(mixed[num_validate:])
    if train_fraction == 1:
        return Division(train=rest, validate=validate)
    assert labels is not None, "a part of the samples is one of every class"
    kept = _evenly(rest, labels, rng.generator(seed, "train-fraction"))[: round(train_fraction * len(rest))]
    return Division(train=np.sort(kept), validate=validate)


def label_shifts(train: Ids, labels: Ids, *, seed: int, share: float, num_classes: int) -> Ids:
    """Label noise: what to add, modulo the number of classes, to each label; (count,).

    ``share`` of the train samples of every class get another class, each of the others equally often; all else gets 0.
    Source: Aghagolzadeh & Ezoji 2025, Table 4, N %.

    Args:
        labels: class of every sample, (count,).
        num_classes: at least 2.
    """
    shifts = np.zeros(len(labels), dtype=np.int64)
    chosen = _evenly(train, labels, rng.generator(seed, "label-noise"))[: round(share * len(train))]
    for label in np.unique(labels[chosen]):
        of_class = chosen[labels[chosen] == label]
        rounds = np.tile(np.arange(1, num_classes), (-(-len(of_class) // (num_classes - 1)), 1))
        mixed = rng.generator(seed, "label-noise-class", int(label)).permuted(rounds, axis=1)
        shifts[of_class] = mixed.reshape(-1)[: len(of_class)]
    return shifts


def _evenly(ids: Ids, labels: Ids, random: np.random.Generator) -> Ids:
    """The samples in a random order of which every beginning has the classes in their proportions.

    Of n samples of a class the k-th comes at (k - 1/2) / n, as seats are handed out after Sainte-Laguë.
    """
    mixed = random.permutation(ids)
    by_class = mixed[np.argsort(labels[mixed], kind="stable")]
    counts = np.unique(labels[by_class], return_counts=True)[1]
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts] or [np.empty(0)])
    ties = random.permutation(len(ids))  # which class comes first where several have a sample at one place
    return by_class[np.lexsort((ties, places))]


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
