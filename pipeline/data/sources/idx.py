"""MNIST's IDX files, raw or gzipped: big-endian sizes, then the bytes of all images or labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data import archives
from pipeline.data.skipped import Skipped
from pipeline.data.sources.base import Sample, require_pairs
from pipeline.errors import UserError

_BYTE_TYPE = 0x08  # the third byte of the magic number: unsigned bytes
_PREFIX = {"train": "train", "test": "t10k"}

NAMES = tuple(f"{prefix}-{part}" for prefix in _PREFIX.values() for part in ("images-idx3-ubyte", "labels-idx1-ubyte"))
"""The four files of MNIST and of Fashion-MNIST, without .gz."""


class IdxSource:
    """MNIST or Fashion-MNIST.

    Args:
        files: path of each of ``NAMES``, raw or gzipped.
        classes: class names in label order.
        note: where the files came from.

    Raises:
        UserError: a file is not what its name says.
    """

    def __init__(self, files: Mapping[str, Path], *, classes: tuple[str, ...], note: str) -> None:
        self._splits: dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}
        for split, prefix in _PREFIX.items():
            images = read_idx(files[f"{prefix}-images-idx3-ubyte"], dimensions=3)
            labels = read_idx(files[f"{prefix}-labels-idx1-ubyte"], dimensions=1)
            require_pairs(split, len(images), len(labels))
            self._splits[split] = images, labels
        self.classes = classes
        height, width = self._splits["train"][0].shape[1:]
        self.shape = (1, height, width)
        self.counts = {split: len(labels) for split, (_, labels) in self._splits.items()}
        self.skipped: list[Skipped] = []
        self.note = note

    def read(self, split: str) -> Iterator[Sample]:
        """The samples of ``train`` or ``test`` in the files' order."""
        images, labels = self._splits[split]
        for image, label in zip(images, labels, strict=True):
            yield image[:, :, None], int(label)


def read_raw(path: Path) -> bytes:
    """The file's bytes, gunzipped where they are gzipped (by content, not by name).

    Raises:
        UserError: the gzip stream is damaged, or unpacks to more than any such file has.
    """
    try:
        return archives.gunzip(path)
    except archives.UnfitError as cause:
        raise UserError(f"{path} {cause}: this is no IDX file that was published. Get it again.") from None
    except archives.DAMAGED as cause:
        raise UserError(f"{path} is not a whole gzip file ({cause}). Get it again.") from None


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes.

    Raises:
        UserError: wrong magic number, or fewer or more bytes than its sizes say.
    """
    data = read_raw(path)
    start = 4 + 4 * dimensions
    if len(data) < start or data[:4] != bytes((0, 0, _BYTE_TYPE, dimensions)):
        raise UserError(f"{path} is not an IDX file of {dimensions} dimension(s) of bytes. Get it again.")
    sizes = [int(size) for size in np.frombuffer(data[4:start], dtype=">u4")]
    if len(data) - start != math.prod(sizes):
        raise UserError(f"{path} holds {len(data) - start} bytes of data, its header says {sizes}. Get it again.")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(sizes)
