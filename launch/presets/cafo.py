"""The Cascaded Forward algorithm (Zhao et al. 2023)."""

from __future__ import annotations

from dataclasses import replace

from launch.presets.base import Preset
from launch.presets.papers import CAFO
from pipeline.config.settings import AugmentSettings, DataSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.methods import CafoSettings
from pipeline.nets import CascadeSettings

_NAMES = {"mnist": "MNIST", "cifar10": "CIFAR-10"}

_OURS = """Blocks, predictors and what they predict together are the program's, which takes all images as one batch.
Batch, the ridge, and AdamW in place of 5000 steps of plain gradient descent are ours. Blocks that direct feedback
alignment has trained, in place of random ones: launch PRESET --baseline dfa, then launch PRESET --init-from RUN."""
_PROGRAM = """CIFAR-10, test error in comments of the program of {short}: closed form 34.86, cross-entropy 32.57,
sparsemax 33.65 (--predictor sparsemax)."""


def _presets(data: str) -> dict[str, Preset]:
    closed = Settings(
        data=DataSettings(data=data),
        net=CascadeSettings(),
        method=CafoSettings(),
        augment=AugmentSettings(crop_padding=0, flip="off"),
        train=TrainSettings(epochs=1, batch_size=512, last_batch="keep", keep="last"),
        readout=ReadoutSettings(mode="none"),
    )
    gradient = replace(
        closed,
        method=CafoSettings(predictor="cross-entropy"),
        train=replace(closed.train, epochs=20, lr=1e-3),
    )
    paper = "\n".join([_PROGRAM.format(short=CAFO.short), _OURS])
    return {
        f"cafo-{data}": Preset(
            title=f"Cascaded Forward, random blocks, least squares in one epoch, cascade[32 128 512], {_NAMES[data]}",
            source=CAFO,
            reported="error 34.86 (program)" if data == "cifar10" else "",
            paper=paper,
            settings=closed,
        ),
        f"cafo-{data}-ce": Preset(
            title=f"Cascaded Forward, random blocks, cross-entropy, cascade[32 128 512], {_NAMES[data]}",
            source=CAFO,
            reported="error 32.57 (program)" if data == "cifar10" else "",
            paper=paper,
            settings=gradient,
        ),
    }


PRESETS: dict[str, Preset] = {name: preset for data in _NAMES for name, preset in _presets(data).items()}
