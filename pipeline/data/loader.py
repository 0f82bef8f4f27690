"""Batches of a prepared data set, in an order that depends on seed and epoch alone.

A batch's samples are found by their offsets in the shards, so a feeder decodes its own batches and nothing else. Where
all decoded images fit the memory budget they are kept as they are first read: from the second epoch on nothing is
decoded. Kept or decoded each time, alone or among several feeders: the same batches, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data import order, shards
from pipeline.data.index import DataIndex, SplitIndex
from pipeline.data.shards import ChangedError, ShardError, ShardTable
from pipeline.data.skipped import Skipped, skip
from pipeline.errors import UserError

Split = Literal["train", "validate", "test"]
DiskSplit = Literal["train", "test"]
"""A split as it lies on disk; who validates is taken from one of the two."""

_HASHED_UP_TO = 2 << 30  # bytes of shards; more take too long to hash at every start unless asked for (strict)
_UNREAD = -1  # label of a sample whose shard is not scanned yet


@dataclass(frozen=True)
class Batch:
    """Consecutive samples of a pass's order."""

    images: Tensor
    """(N, C, H, W) uint8, contiguous; of fewer samples where others were not wanted."""
    labels: Tensor
    """(N,) int64, with label noise where the run asks for it."""
    ids: Tensor
    """(N,) int64, the samples' indices in their split on disk."""
    position: int
    """Index of the first sample in the pass's order."""
    step: int
    """Number of the batch in the pass, from 0."""
    last: bool
    """Whether it is the pass's last batch."""
    image_ids: Tensor | None = None
    """(M,) int64: the samples that ``images`` are of, some of ``ids``; None: of all."""


class Dataset:
    """A prepared folder opened for one run. All checks are made here, before anything starts.

    Args:
        folder: holds ``index.json`` and its shards.
        seed: the run's seed; keys the validation split, the train fraction, label noise and the order of epochs.
        validation: share of the training samples that validates, in [0, 1); "test": none, and the test samples do.
        train_fraction: share of the remaining training samples that is used, of every class alike, in (0, 1].
        label_noise: share of the used training labels that is changed to another class, of every class alike and to
            each other one equally often, in [0, 1).
        memory_budget: bytes that decoded images may take; all splits fit or none is kept.
        shuffle_window: samples over which an epoch is shuffled at a time; below that whole shards are.
        max_batches: batches after which a pass over any split ends; None for no such bound.
        keep_last: whether training has a smaller last batch, where one is left over.
        strict: refuse shards that others would skip, and hash also sets larger than 2 GiB.

    Raises:
        UserError: no whole index, a setting out of range, labels outside the classes, no samples; with ``strict`` any
            missing, truncated or corrupt shard.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        validation: float | Literal["test"] = 0.1,
        train_fraction: float = 1.0,
        label_noise: float = 0.0,
        memory_budget: int = 4 << 30,
        shuffle_window: int = 65536,
        max_batches: int | None = None,
        keep_last: bool = False,
        strict: bool = False,
    ) -> None:
        by_test = validation == "test"
        share = 0.0 if validation == "test" else validation
        _check_settings(share, train_fraction, label_noise, memory_budget, shuffle_window)
        self.folder = folder
        self.index: DataIndex = DataIndex.load(folder)
        self._seed, self._validation = seed, validation
        self._shuffle_window = shuffle_window
        self._max_batches, self._keep_last = max_batches, keep_last

        skipped: list[Skipped] = []
        hashed = strict or self.index.num_bytes <= _HASHED_UP_TO
        disk = {
            name: _SplitOnDisk(self.index, folder, name, strict=strict, hashed=hashed, skipped=skipped)
            for name in ("train", "test")
        }
        self.skipped: tuple[Skipped, ...] = tuple(skipped)
        """Each shard left out now."""
        self._disk: dict[Split, _SplitOnDisk] = {
            "train": disk["train"],
            "validate": disk["test" if by_test else "train"],
            "test": disk["test"],
        }

        count = disk["train"].count
        num_classes = len(self.index.classes)
        noisy = label_noise > 0 and num_classes > 1
        labels = disk["train"].labels() if train_fraction < 1 or noisy else None
        division = order.divide(count, labels, seed=seed, validation=share, train_fraction=train_fraction)
        self._shifts: NDArray[np.int64] | None = None
        if noisy and labels is not None:
            self._shifts = order.label_shifts(
                division.train, labels, seed=seed, share=label_noise, num_classes=num_classes
            )
        # Skipped shards leave the division of the others into training and validation as it was.
        test = disk["test"].present(np.arange(disk["test"].count))
        self._ids: dict[Split, NDArray[np.int64]] = {
            "train": disk["train"].present(division.train),
            "validate": test if by_test else disk["train"].present(division.validate),
            "test": test,
        }
        self._check_counts(share)
        if sum(len(ids) for ids in self._ids.values()) * disk["train"].image_bytes <= memory_budget:
            for split in disk.values():
                split.keep_images()

    def count(self, split: Split) -> int:
        """Samples of a split."""
        return len(self._ids[split])

    @property
    def counts_on_disk(self) -> dict[DiskSplit, int]:
        """Samples on disk, among them those that the run does not use."""
        return {"train": self._disk["train"].count, "test": self._disk["test"].count}

    def on_disk(self, split: Split) -> DiskSplit:
        """The split on disk whose samples these are: ``Batch.ids`` count in it."""
        return on_disk(split, self._validation)

    def num_batches(self, split: Split, batch_size: int) -> int:
        """Batches of a pass: in training whole ones unless the last is kept, otherwise the last partial one as well."""
        _check_batch_size(batch_size)
        count = self.count(split)
        whole = split == "train" and (not self._keep_last or count < batch_size)
        batches = count // batch_size if whole else -(-count // batch_size)
        return batches if self._max_batches is None else min(batches, self._max_batches)

    def images_per_pass(self, split: Split, batch_size: int) -> int:
        """Images of all of a pass's batches."""
        return min(self.count(split), self.num_batches(split, batch_size) * batch_size)

    def batches(
        self,
        split: Split,
        *,
        epoch: int,
        batch_size: int,
        part: tuple[int, int] = (0, 1),
        first: int = 0,
        without: NDArray[np.bool_] | None = None,
    ) -> Iterator[Batch]:
        """The batches of one pass.

        Training is shuffled by (seed, epoch) and drops the last partial batch unless it is kept; the others go in disk
        order, whatever the epoch.

        Args:
            part: (f, F) gives only batches with step % F == f: the share of feeder f among F.
            first: the first batch that is wanted, from 0.
            without: for each sample of the split on disk whether its image is not wanted. Those that are wanted then
                are not kept in memory: nobody asks for one twice.

        Raises:
            UserError: fewer training samples than a batch, or a sample that cannot be read (named).
        """
        feeder, num_feeders = part
        if not 0 <= feeder < num_feeders:
            raise UserError(f"part {part}: feeder f of F needs 0 <= f < F")
        num_batches = self.num_batches(split, batch_size)
        if split == "train" and num_batches == 0:
            raise UserError(
                f"{self.index.name} has {self.count('train')} training samples, fewer than one batch of {batch_size}. "
                "Give a smaller `batch_size` or more data."
            )
        ids = self._pass_order(split, epoch)
        for step in range(first + (feeder - first) % num_feeders, num_batches, num_feeders):
            position = step * batch_size
            chosen = ids[position : position + batch_size]
            wanted = chosen if without is None else chosen[~without[chosen]]
            images = self._disk[split].images(wanted, keep=without is None)
            labels = self._disk[split].labels_of(chosen)
            if split == "train" and self._shifts is not None:
                labels = (labels + self._shifts[chosen]) % len(self.index.classes)
            yield Batch(
                images=torch.from_numpy(images),
                labels=torch.from_numpy(labels),
                ids=torch.from_numpy(chosen.copy()),
                position=position,
                step=step,
                last=step == num_batches - 1,
                image_ids=None if without is None else torch.from_numpy(wanted.copy()),
            )

    def pass_ids(self, split: Split, *, epoch: int, batch_size: int, first: int = 0) -> NDArray[np.int64]:
        """The samples of all batches of a pass from ``first`` on."""
        end = self.num_batches(split, batch_size) * batch_size
        return self._pass_order(split, epoch)[first * batch_size : end]

    def _pass_order(self, split: Split, epoch: int) -> NDArray[np.int64]:
        if split != "train":
            return self._ids[split]
        return order.epoch_order(
            [shard.count for shard in self.index.splits["train"].shards],
            self._ids["train"],
            seed=self._seed,
            epoch=epoch,
            shuffle_window=self._shuffle_window,
        )

    def _check_counts(self, validation: float) -> None:
        for split in ("train", "test"):
            if not self.count(split):
                reason = (
                    " ".join(f"{shard.file}: {shard.reason}." for shard in self.skipped)
                    or "The settings leave none, or the folder holds none."
                )
                raise UserError(f"{self.folder} has no usable {split} samples. {reason}")
        if validation and not self.count("validate"):
            raise UserError(
                f"A validation share of {validation} of {self._disk['train'].count} training samples is no sample. "
                "Give a larger share, or 0 to go without validation."
            )


def on_disk(split: Split, validation: float | Literal["test"]) -> DiskSplit:
    """The split on disk that a split's samples are from; ``validation`` as ``Dataset`` takes it."""
    return "test" if split == "test" or (split == "validate" and validation == "test") else "train"


class _SplitOnDisk:
    """The samples of ``train`` or ``test`` by their index on disk."""

    def __init__(
        self, index: DataIndex, folder: Path, name: str, *, strict: bool, hashed: bool, skipped: list[Skipped]
    ) -> None:
        info: SplitIndex = index.splits[name]
        self._infos = info.shards
        self._folder = folder
        self._num_classes = len(index.classes)
        self._shape = index.shape
        self._starts = np.concatenate([[0], np.cumsum([shard.count for shard in info.shards])]).astype(np.int64)
        self._tables: list[ShardTable | None] = [None] * len(info.shards)
        self._labels = np.full(info.count, _UNREAD, dtype=np.int64)
        self._usable = np.ones(len(info.shards), dtype=bool)
        self._kept: NDArray[np.uint8] | None = None  # (count, C, H, W); rows are valid where _is_kept
        self._is_kept = np.zeros(0, dtype=bool)
        self.count = info.count
        self.image_bytes = int(np.prod(index.shape))
        for number, shard in enumerate(info.shards):
            try:
                shards.verify(folder, shard, hashed=hashed)
                if hashed or not shard.sha256:
                    self._table(number)
            except ShardError as cause:
                if strict:
                    raise UserError(
                        f"Shard {folder / shard.file} {cause}. Prepare the data set again, or leave out `strict_data` "
                        "to skip it."
                    ) from None
                what = f"it {cause}; its {shard.count} {name} samples are left out"
                skipped.append(skip(folder / shard.file, "broken shard", what))
                self._usable[number] = False

    def present(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of ``ids`` whose shard is usable."""
        if self._usable.all():
            return ids
        return ids[self._usable[self._shard_of(ids)]]

    def labels(self) -> NDArray[np.int64]:
        """Of every sample, (count,); those of skipped shards have one of their own, below all others.

        Raises:
            UserError: a shard that was not scanned yet cannot be read.
        """
        for number in np.flatnonzero(self._usable):
            self._readable(int(number))
        return self._labels

    def keep_images(self) -> None:
        """Keep every image once it is decoded."""
        # The pages of an empty array take memory as they are written.
        self._kept = np.empty((self.count, *self._shape), dtype=np.uint8)
        self._is_kept = np.zeros(self.count, dtype=bool)

    def images(self, ids: NDArray[np.int64], *, keep: bool) -> NDArray[np.uint8]:
        """Images (N, C, H, W) of the samples; with ``keep`` they are kept as far as the memory budget allows it."""
        if self._kept is None or not keep:
            images = np.empty((len(ids), *self._shape), dtype=np.uint8)
            self._decode(ids, images)
            return images
        missing = ids[~self._is_kept[ids]]
        if len(missing):
            fresh = np.empty((len(missing), *self._shape), dtype=np.uint8)
            self._decode(missing, fresh)
            self._kept[missing] = fresh
            self._is_kept[missing] = True
        return self._kept[ids]

    def labels_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Labels (N,) of the samples."""
        labels = self._labels[ids]
        if (labels == _UNREAD).any():
            for shard in np.unique(self._shard_of(ids)):
                self._readable(int(shard))
            labels = self._labels[ids]
        return labels

    def _decode(self, ids: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        for shard, rows, positions in self._by_shard(ids):
            part = np.empty((len(rows), *self._shape), dtype=np.uint8)
            try:
                shards.read_images(self._readable(shard), rows, self._shape, part)
            except ChangedError:
                self._look_again(shard)
                shards.read_images(self._readable(shard), rows, self._shape, part)
            out[positions] = part

    def _look_again(self, number: int) -> None:
        """Takes a shard whose file was written meanwhile as it is now, if it has the same bytes."""
        info = self._infos[number]
        try:
            shards.verify(self._folder, info, hashed=True)
        except ShardError as cause:
            raise UserError(
                f"{self._folder / info.file}: has been changed since it was opened, and {cause}. Bring it back as it "
                "was; a run then goes on from its last checkpoint."
            ) from None
        self._tables[number] = None

    def _by_shard(self, ids: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """(shard, rows in it, positions in ``ids``), shard by shard."""
        shard_of = self._shard_of(ids)
        for shard in np.unique(shard_of):
            positions = np.flatnonzero(shard_of == shard)
            yield int(shard), ids[positions] - self._starts[shard], positions

    def _shard_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._starts, ids, side="right") - 1

    def _readable(self, number: int) -> ShardTable:
        """The shard's table, scanned now where opening did not (sets over 2 GiB)."""
        try:
            return self._table(number)
        except ShardError as cause:
            raise UserError(
                f"Shard {self._folder / self._infos[number].file} {cause}. Start with `strict_data` to check every "
                "shard of a large set before the run, or prepare the data set again."
            ) from None

    def _table(self, number: int) -> ShardTable:
        table = self._tables[number]
        if table is None:
            info = self._infos[number]
            table = shards.scan(self._folder / info.file)
            if len(table.keys) != info.count:
                raise ShardError(f"holds {len(table.keys)} samples where the index says {info.count}")
            shards.check_labels(table, self._num_classes)
            self._tables[number] = table
            self._labels[self._starts[number] : self._starts[number + 1]] = table.labels
        return table


def _check_settings(
    validation: float, train_fraction: float, label_noise: float, memory_budget: int, shuffle_window: int
) -> None:
    if not 0 <= validation < 1:
        raise UserError(f"`validation` {validation}: give the share of training samples that validates, 0 <= share < 1")
    if not 0 < train_fraction <= 1:
        raise UserError(f"`train_fraction` {train_fraction}: give the share of samples to train on, 0 < share <= 1")
    if not 0 <= label_noise < 1:
        raise UserError(f"`label_noise` {label_noise}: give the share of labels to change, 0 <= share < 1")
    if memory_budget < 0:
        raise UserError(f"`memory_budget` {memory_budget}: give bytes for decoded images, 0 or more")
    if shuffle_window < 1:
        raise UserError(f"`shuffle_window` {shuffle_window}: give a number of samples, 1 or more")


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"`batch_size` {batch_size}: give 1 or more")
