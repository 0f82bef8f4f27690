"""Random images of CIFAR-10's size, for benchmarks of speed on a machine that has no data set prepared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.data.build import build
from pipeline.data.skipped import Skipped
from pipeline.data.sources.base import Sample, silent

_SIDE, _CLASSES = 32, 10
_COUNTS = {"train": 4608, "test": 512}


class MadeUpImages:
    """Implements ``pipeline.data.sources.base.Source``."""

    def __init__(self) -> None:
        self.classes = tuple(str(label) for label in range(_CLASSES))
        self.shape = (3, _SIDE, _SIDE)
        self.counts = dict(_COUNTS)
        self.skipped: list[Skipped] = []
        self.note = "random images, made for a benchmark"

    def read(self, split: str) -> Iterator[Sample]:
        """The same images every time; classes take turns."""
        random = np.random.default_rng(len(split))
        for number in range(self.counts[split]):
            yield random.integers(256, size=(_SIDE, _SIDE, 3), dtype=np.uint8), number % _CLASSES


def prepare_made_up(folder: Path) -> None:
    """Writes them as a prepared data set. Takes some seconds."""
    build(MadeUpImages(), name="made-up images", target=folder, progress=silent)
