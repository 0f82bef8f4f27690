"""A data set of one's own under a name, in a file outside localpipe: it is listed, prepared and trained on like others.

    launch list --plugin examples/plugin_tiles.py
    launch cff-vit --data tiles --plugin examples/plugin_tiles.py

Its images are computed: a bright quarter of a noisy tile is the class.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.data.registry import DATASETS, DatasetFacts
from pipeline.data.skipped import Skipped
from pipeline.data.sources.base import Sample

_CORNERS = ("top left", "top right", "bottom left", "bottom right")


class TilesSource:
    """Tiles of 8×8, in the same order with the same noise whenever they are read."""

    classes: tuple[str, ...] = _CORNERS
    shape: tuple[int, int, int] = (1, 8, 8)
    note: str = "examples/plugin_tiles.py"

    def __init__(self) -> None:
        self.counts = {"train": 400, "test": 100}
        self.skipped: list[Skipped] = []

    def read(self, split: str) -> Iterator[Sample]:
        random = np.random.default_rng(len(split))
        for number in range(self.counts[split]):
            label = number % len(_CORNERS)
            image = random.integers(0, 120, (8, 8, 1), dtype=np.uint8)
            row, column = divmod(label, 2)
            image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 100
            yield image, label


DATASETS.register(
    DatasetFacts(
        name="tiles",
        title="Tiles with a bright corner (plug-in, 8x8, 500 images)",
        classes=_CORNERS,
        num_classes=len(_CORNERS),
        shape=(1, 8, 8),
        crop_padding=0,
        flip=False,
        source=TilesSource,
    )
)
