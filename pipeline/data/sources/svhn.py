"""SVHN, street view house numbers, in its format 2: cropped digits in two MATLAB 5 files.

A file holds X (32, 32, 3, N), bytes by row, column and colour, and y (N, 1), labels 1 … 10 of which 10 is the digit 0.
The 531,131 easier images of ``extra_32x32.mat`` are not used.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.archives import LARGEST_MEMBER
from pipeline.data.skipped import Skipped
from pipeline.data.sources.base import Sample
from pipeline.errors import UserError

FILES: Mapping[str, str] = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
"""The file of each split."""

_SHAPE = (32, 32, 3)

# What a MATLAB file that is cut off, altered, of another version or no such file at all raises, beside MatReadError.
_DAMAGED = (
    ArithmeticError, AttributeError, LookupError, MemoryError, NotImplementedError, OSError, TypeError, ValueError,
    zlib.error,
)  # fmt: skip


class SvhnSource:
    """The cropped digits.

    Args:
        files: path of each of the values of ``FILES``. Check their md5s first: SciPy's reader is compiled, and altered
            bytes in a file without compression can crash the process.
        classes: class names in the order of the digits.
        note: where the files came from.

    Raises:
        UserError: a file is not what its name says.
    """

    def __init__(self, files: Mapping[str, Path], *, classes: tuple[str, ...], note: str) -> None:
        self._splits = {split: _read(files[name]) for split, name in FILES.items()}
        self.classes = classes
        self.shape = (3, 32, 32)
        self.counts = {split: len(labels) for split, (_, labels) in self._splits.items()}
        self.skipped: list[Skipped] = []
        self.note = note

    def read(self, split: str) -> Iterator[Sample]:
        """The samples of ``train`` or ``test`` in the files' order."""
        images, labels = self._splits[split]
        for number, label in enumerate(labels):
            yield np.ascontiguousarray(images[..., number]), int(label)


def _read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (32, 32, 3, N) and digits (N,)."""
    # These take a moment, which every worker would take to start.
    from scipy.io import loadmat, whosmat  # noqa: PLC0415
    from scipy.io.matlab import MatReadError  # noqa: PLC0415

    try:
        for name, shape, _ in whosmat(path, appendmat=False):  # what it claims, before memory is taken for it
            if math.prod(shape) > LARGEST_MEMBER:
                raise ValueError(f"{name} has {math.prod(shape):,} values, at most {LARGEST_MEMBER:,} are read")
        content = loadmat(path, appendmat=False, variable_names=("X", "y"))
    except (MatReadError, *_DAMAGED) as cause:
        raise UserError(f"{path} is not a whole MATLAB 5 file ({cause}). Get it again.") from None
    if not {"X", "y"} <= content.keys():
        raise UserError(f"{path} lacks the variable X or y of SVHN's cropped digits (format 2). Get that format.")
    images, labels = np.asarray(content["X"]), np.asarray(content["y"])
    count = labels.size
    if not count or images.dtype != np.uint8 or images.shape != (*_SHAPE, count) or labels.shape != (count, 1):
        raise UserError(
            f"{path} has X {images.shape} of {images.dtype} and y {labels.shape}, not (32, 32, 3, N) of uint8 and "
            "(N, 1). Get it again."
        )
    if not np.isin(labels, np.arange(1, 11)).all():
        raise UserError(f"{path} has labels other than 1 … 10. Get it again.")
    return images, labels[:, 0].astype(np.int64) % 10
