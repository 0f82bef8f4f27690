"""scikit-learn's handwritten digits: 1,797 images of 8x8, embedded in the package.

Pixels are 0 … 16; here round(v * 255 / 16), the half (v = 8) to even: 128. There is no official test split: a fixed
20 % of each class are the test images.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.data.skipped import Skipped
from pipeline.data.sources.base import Sample, holdout_mask


class DigitsSource:
    """The digits with their fixed split."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits  # noqa: PLC0415 (half a second, which every worker would take to start)

        bunch = load_digits()
        images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]  # (N, 8, 8, 1)
        labels = bunch.target.astype(np.int64)
        test = holdout_mask(labels)
        self._splits = {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}
        self.classes = tuple("0123456789")
        self.shape = (1, 8, 8)
        self.counts = {split: len(labels) for split, (_, labels) in self._splits.items()}
        self.skipped: list[Skipped] = []
        self.note = "scikit-learn load_digits; test: a fixed 20 % of each class"

    def read(self, split: str) -> Iterator[Sample]:
        """The samples of ``train`` or ``test`` in the package's order."""
        images, labels = self._splits[split]
        for image, label in zip(images, labels, strict=True):
            yield image, int(label)
