"""A method with two activations and an optimizer of its own: each layer pulls two views of an image together.

    launch twin-views --plugin examples/plugin_twin_views.py --stages 3

The views travel side by side, as ``a`` and ``b``. A layer's loss is the normalised temperature-scaled cross-entropy
(InfoNCE) of its pooled features: an image's other view against those of all other images. Labels are for the readouts
alone. Layers learn by SGD with momentum, whose rate is warmed up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from launch.presets.base import Preset
from pipeline.config.settings import AugmentSettings, DataSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.methods import METHODS, Activations, BatchPosition, MethodConfig, ModelInfo, Rule, StepContext
from pipeline.nets import Layer, VitSettings


@METHODS.register
@dataclass(frozen=True, kw_only=True)
class TwinViewsSettings(MethodConfig):
    """Two views of an image, side by side."""

    kind: ClassVar[str] = "plugin-twin-views"
    view_temperature: float = 0.2
    """Temperature of the similarities."""
    momentum: float = 0.9
    """Momentum of each layer's SGD."""
    warm_up: int = 20
    """Steps over which the learning rate rises."""

    def optimizer(
        self, index: int, parameters: Sequence[nn.Parameter], *, lr: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=lr, momentum=self.momentum, weight_decay=weight_decay)

    def lr_factor(self, index: int, where: BatchPosition) -> float:
        return min(1.0, (where.phase_step + 1) / self.warm_up)

    def build(self, index: int, layer: Layer, model_info: ModelInfo) -> TwinViewsRule:
        return TwinViewsRule(self.view_temperature)


class TwinViewsRule(Rule):
    num_views = 2

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def make_inputs(self, images: Tensor, context: StepContext) -> Activations:
        views = images.split(len(context.labels))  # two while the layers learn, one for readouts and test
        return dict(zip("ab", views, strict=False))

    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        if "b" not in outputs:
            return outputs["a"].new_zeros(())
        a, b = (F.normalize(layer.pool(outputs[view]).float(), dim=1) for view in "ab")
        similarities, own = a @ b.T / self.temperature, torch.arange(len(a), device=a.device)
        return (F.cross_entropy(similarities, own) + F.cross_entropy(similarities.T, own)) / 2

    def features(self, layer: Layer, outputs: Activations) -> Tensor:
        return torch.cat([layer.pool(outputs[view]) for view in outputs])

    def readout_input(self, layer: Layer, outputs: Activations) -> Tensor:
        return torch.cat([layer.readout_input(outputs[view]) for view in outputs])


PRESETS = {
    "twin-views": Preset(
        title="Two views side by side (plug-in), ViT[32 2 3] on digits",
        settings=Settings(
            data=DataSettings(data="digits"),
            net=VitSettings(dim=32, heads=2, depth=3),
            method=TwinViewsSettings(),
            augment=AugmentSettings(crop_padding=1),
            train=TrainSettings(epochs=20, batch_size=64, lr=0.05, validation_views="augmented"),
            readout=ReadoutSettings(readout_epochs=20),
        ),
    )
}
