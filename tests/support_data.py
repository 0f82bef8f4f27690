"""Made-up data sets under the names of published ones, so that commands which name them can be run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.config.settings import DataSettings, Settings
from pipeline.data.build import build
from pipeline.data.registry import DATASETS
from pipeline.data.sources.base import silent
from pipeline.nets import VitSettings
from tests.data.conftest import MadeUpSource


def prepare_made_up(data_dir: Path, name: str, *, num_train: int, num_test: int) -> None:
    """Prepares random images with the classes and the shape of a known data set, where `launch prepare` would."""
    facts = DATASETS[name]
    source = MadeUpSource(num_train, num_test, facts.shape, facts.num_classes)
    source.classes = facts.classes or source.classes
    data_dir.mkdir(parents=True, exist_ok=True)
    build(source, name=name, target=data_dir / name, progress=silent)


def write_photos(folder: Path, *, seed: int = 0) -> None:
    """A folder of images by class, of several sizes, as a person's own."""
    random = np.random.default_rng(seed)
    for name, level in (("cat", 60), ("dog", 180)):
        (folder / name).mkdir(parents=True)
        for number in range(160):
            height, width = random.integers(40, 120, 2)
            pixels = random.normal(level, 30, (height, width, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.jpg")


def run_of_256_tokens(folder: Path, settings: Settings) -> Settings:
    """The same run on images of 16×16 pixels, each a token of its own, which it writes first."""
    random = np.random.default_rng(0)
    for name, level in (("dark", 80), ("light", 160)):
        (folder / name).mkdir(parents=True)
        for number in range(40):
            pixels = random.normal(level, 40, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return replace(
        settings,
        data=DataSettings(data=str(folder)),
        net=VitSettings(dim=16, heads=2, depth=3, patch=1),
        train=replace(settings.train, epochs=2, batch_size=16),
    )
