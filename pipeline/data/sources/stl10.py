"""STL-10: the labelled images of the official binary archive, or of its unpacked folder.

An image is 3 x 96 x 96 bytes: the red, green and blue planes, each column by column. A label is a byte, 1 … 10. The
100,000 images without labels (``unlabeled_X.bin``) and the ten folds of the training images are neither used nor read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.skipped import Skipped
from pipeline.data.sources import tar
from pipeline.data.sources.base import Sample, require_pairs
from pipeline.errors import UserError

FILES: Mapping[str, tuple[str, str]] = {"train": ("train_X.bin", "train_y.bin"), "test": ("test_X.bin", "test_y.bin")}
"""The files of images and of labels of each split."""

NAMES = tuple(name for names in FILES.values() for name in names)

_PIXELS = 3 * 96 * 96


class Stl10Source:
    """STL-10's labelled images.

    Args:
        members: bytes of each of ``NAMES``.
        classes: class names in label order.
        note: where the files came from.

    Raises:
        UserError: files are missing or are not what their names say.
    """

    def __init__(self, members: Mapping[str, bytes], *, classes: tuple[str, ...], note: str) -> None:
        missing = [name for name in NAMES if name not in members]
        if missing:
            raise UserError(f"This is not stl10: {', '.join(missing)} missing. Get the archive again.")
        self._splits = {
            split: (_images(images, members[images]), _labels(labels, members[labels]))
            for split, (images, labels) in FILES.items()
        }
        for split, (images, labels) in self._splits.items():
            require_pairs(split, len(images), len(labels))
        self.classes = classes
        self.shape = (3, 96, 96)
        self.counts = {split: len(labels) for split, (_, labels) in self._splits.items()}
        self.skipped: list[Skipped] = []
        self.note = note

    def read(self, split: str) -> Iterator[Sample]:
        """The samples of ``train`` or ``test`` in the files' order."""
        images, labels = self._splits[split]
        for image, label in zip(images, labels, strict=True):
            yield np.ascontiguousarray(image.transpose(2, 1, 0)), int(label)


def read_archive(path: Path) -> dict[str, bytes]:
    """The bytes of those of ``NAMES`` that are in the archive.

    Raises:
        UserError: it is not a whole tar.
    """
    return tar.read_members(path, NAMES)


def _images(file: str, data: bytes) -> NDArray[np.uint8]:
    if not data or len(data) % _PIXELS:
        raise UserError(f"{file} has {len(data)} bytes, not a multiple of stl10's images of {_PIXELS}. Get it again.")
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, 3, 96, 96)  # (N, C, W, H): columns come before rows


def _labels(file: str, data: bytes) -> NDArray[np.int64]:
    labels = np.frombuffer(data, dtype=np.uint8).astype(np.int64)
    if len(labels) and not 1 <= labels.min() <= labels.max() <= 10:
        raise UserError(f"{file} has labels {labels.min()} … {labels.max()}, stl10 has 1 … 10. Get it again.")
    return labels - 1
