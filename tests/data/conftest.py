"""Small made-up data sets, prepared and in their authors' formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import shards
from pipeline.data.build import build
from pipeline.data.skipped import Skipped
from pipeline.data.sources.base import Sample, silent

SHARD = 10  # samples in a shard of these tests


class MadeUpSource:
    """Random images; sample i of a split has label i % classes and i in its first pixel."""

    def __init__(self, num_train: int, num_test: int, shape: tuple[int, int, int], num_classes: int) -> None:
        self.classes = tuple(f"class-{number}" for number in range(num_classes))
        self.shape = shape
        self.counts = {"train": num_train, "test": num_test}
        self.skipped: list[Skipped] = []
        self.note = "made up"

    def read(self, split: str) -> Iterator[Sample]:
        channels, height, width = self.shape
        random = np.random.default_rng(len(split))
        for number in range(self.counts[split]):
            image = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
            image[0, 0, 0] = number % 256
            yield image, number % len(self.classes)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SAMPLES_PER_SHARD", SHARD)


@pytest.fixture
def prepared(tmp_path: Path, small_shards: None) -> Callable[..., Path]:
    """A function that prepares a made-up set and gives its folder."""

    def make(
        name: str = "made-up",
        num_train: int = 47,
        num_test: int = 13,
        shape: tuple[int, int, int] = (3, 6, 5),
        num_classes: int = 4,
    ) -> Path:
        target = tmp_path / name
        source = MadeUpSource(num_train, num_test, shape, num_classes)
        build(source, name=name, target=target, progress=silent)
        return target

    return make
