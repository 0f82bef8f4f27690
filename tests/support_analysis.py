"""Small runs on digits for what is done with runs afterwards, and their images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

from rich.console import Console
from torch import Tensor

from launch.command_line.parse import RunArguments
from launch.commands.train import train
from pipeline.config.settings import PipelineSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.data.loader import Dataset
from pipeline.data.prepare import resolve
from pipeline.methods import CffSettings, CflSettings, DclSettings, MethodConfig
from pipeline.methods.embeddings import EmbeddingSettings
from pipeline.nets import MlpSettings, NetConfig, VitSettings
from pipeline.nets.conv import ConvSettings

_OWN = EmbeddingSettings(embedding_mode="per-layer")
_ONLINE, _NONE = ReadoutSettings(mode="online", readout_norm=False), ReadoutSettings(mode="none")
_RUNS: dict[str, tuple[NetConfig, MethodConfig, ReadoutSettings]] = {
    "cff": (VitSettings(dim=16, heads=2, depth=3), CffSettings(), ReadoutSettings(readout_epochs=1)),
    "cfl": (ConvSettings(channels=(8, 16)), CflSettings(), _ONLINE),
    "cfl-cosine": (VitSettings(dim=16, heads=2, depth=2), CflSettings(similarity="cosine"), _ONLINE),
    "cfl-mlp": (MlpSettings(width=32, depth=2, groups=4), CflSettings(), _ONLINE),
    "dcl-per-layer": (ConvSettings(channels=(8, 16)), DclSettings(embedding=_OWN), _NONE),
}


def digits_run(folder: Path, kind: str) -> Path:
    """Trains two epochs on digits; returns the run's folder."""
    net, method, readout = _RUNS[kind]
    settings = Settings(
        net=net,
        method=method,
        train=TrainSettings(epochs=2, batch_size=64, keep="last"),
        readout=readout,
        pipeline=PipelineSettings(executor="serial", device="cpu"),
        run_dir=str(folder),
    )
    assert train(RunArguments(run=settings), Console(quiet=True), began=time.time()) == 0
    return folder


def digits(split: Literal["train", "validate", "test"]) -> tuple[Tensor, Tensor]:
    """All images and labels of a split, in the order of the split."""
    batch = next(iter(Dataset(resolve("digits"), seed=0).batches(split, epoch=0, batch_size=2000)))
    return batch.images, batch.labels
