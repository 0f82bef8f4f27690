"""Writes a source into shards with an index: whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.data import skipped
from pipeline.data.index import DataIndex, SplitIndex
from pipeline.data.shards import Pixels, SplitWriter
from pipeline.data.sources.base import Progress, Source
from pipeline.errors import UserError

_REPORT_EVERY = 250  # samples
_ELSEWHERE = "Give a folder of your own with LOCALPIPE_DATA or `data_dir`."


@contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Hold ``target``'s lock file, and turn a full disk or one that refuses into one clear message.

    The kernel gives the lock back when its holder dies, so a killed process leaves no lock behind.

    Raises:
        UserError: somebody else holds the lock, the disk is full, or the folder cannot be created or written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise UserError(
            f"The data folder {target.parent} cannot be created ({cause.strerror}). {_ELSEWHERE}"
        ) from cause
    try:
        with (target.parent / f".{target.name}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{target.name} is being prepared by another process in {target.parent}. Wait until it is done, "
                    "then try again."
                ) from None
            yield
    except OSError as cause:
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"The disk of {target.parent} is full: {target.name} was not prepared and nothing of it is left there. "
                "Free some space, or give another folder with LOCALPIPE_DATA or `data_dir`."
            ) from cause
        raise UserError(
            f"{target.name} was not prepared: {cause.filename or target.parent} cannot be written or read "
            f"({cause.strerror or cause}). {_ELSEWHERE}"
        ) from cause


def build(source: Source, *, name: str, target: Path, progress: Progress, resized_from: str = "") -> DataIndex:
    """Write ``source`` to the folder ``target``, replacing what is there. Call it inside ``exclusive(target)``.

    ``resized_from`` is for the index: the sizes that the images had before ``source`` brought them to its own.

    The folder appears by one rename when everything in it is on disk; until then it has another, hidden name.
    """
    partial = target.parent / f".{target.name}.partial"
    replaced = target.parent / f".{target.name}.replaced"
    for leftover in (partial, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    try:
        index = replace(_write(source, name, partial, progress), resized_from=resized_from)
        index.save(partial)
        if target.exists():
            target.rename(replaced)
        partial.rename(target)
    finally:
        # Also after Ctrl-C; a killed process leaves them to the next prepare.
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
    return index


def _write(source: Source, name: str, folder: Path, progress: Progress) -> DataIndex:
    moments = _Moments(source.shape[0])
    splits = {}
    for split in ("train", "test"):
        splits[split] = _write_split(source, split, folder, moments if split == "train" else None, progress)
        if splits[split].count == 0:
            raise UserError(
                f"{name} has no readable {split} images ({_left_out(source)}). {source.note}. "
                "Give at least one image for each of train and test, better hundreds for each class."
            )
    if source.skipped:
        skipped.save(folder / skipped.SKIPPED_FILE, source.skipped)
    mean, std = moments.result()
    return DataIndex(
        name=name,
        classes=source.classes,
        shape=source.shape,
        mean=mean,
        std=std,
        splits=splits,
        skipped=len(source.skipped),
        source=source.note,
    )


def _left_out(source: Source) -> str:
    return f"left out: {skipped.by_reason(source.skipped)}" if source.skipped else "nothing was left out"


def _write_split(source: Source, split: str, folder: Path, moments: _Moments | None, progress: Progress) -> SplitIndex:
    total = source.counts[split]
    class_counts = [0] * len(source.classes)
    writer = SplitWriter(folder, split)
    try:
        for done, (image, label) in enumerate(source.read(split)):
            if not 0 <= label < len(class_counts):
                raise UserError(
                    f"Sample {done} of {split} has label {label}, outside 0 … {len(class_counts) - 1}. {source.note}. "
                    "Correct the labels first."
                )
            writer.write(image, label)
            class_counts[label] += 1
            if moments is not None:
                moments.add(image)
            if done % _REPORT_EVERY == 0:
                progress(f"writing {split}", done, total)
        shards = writer.close()
    finally:
        writer.abort()
    progress(f"writing {split}", total, total)
    return SplitIndex(count=sum(class_counts), class_counts=tuple(class_counts), shards=shards)


class _Moments:
    """Mean and deviation per channel from whole-number sums: exact, whatever the order."""

    def __init__(self, channels: int) -> None:
        self._counts = np.zeros((channels, 256), dtype=np.int64)

    def add(self, image: Pixels) -> None:
        """Count the pixels of an image (H, W, C)."""
        for channel in range(len(self._counts)):
            self._counts[channel] += np.bincount(image[:, :, channel].reshape(-1), minlength=256)

    def result(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, std) of pixels scaled to [0, 1], to six digits."""
        levels = np.arange(256) / 255
        means, deviations = [], []
        for counts in self._counts:
            mean = float((counts * levels).sum() / counts.sum())
            variance = float((counts * (levels - mean) ** 2).sum() / counts.sum())
            means.append(round(mean, 6))
            # A channel without variation (an all-black one) must not divide by zero later.
            deviations.append(round(variance**0.5, 6) or 1.0)
        return tuple(means), tuple(deviations)
