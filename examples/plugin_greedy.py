"""A method that trains layer after layer and reads out all layers joined.

    launch greedy-fc --plugin examples/plugin_greedy.py --stages 3

Each layer learns with a linear classifier of its own on its pooled features, by cross-entropy, while those before it
are frozen and those after it wait. What predicts in the end is one readout on the features of all layers side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from launch.presets.base import Preset
from pipeline.config.settings import DataSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.methods import METHODS, Activations, MethodConfig, ModelInfo, PooledRule, StepContext
from pipeline.nets import Layer, MlpSettings


@METHODS.register
@dataclass(frozen=True, kw_only=True)
class GreedySettings(MethodConfig):
    """A classifier at each layer, layer after layer."""

    kind: ClassVar[str] = "plugin-greedy"
    layers_at_a_time: int = 1
    """Layers that learn together before the next ones begin."""
    smoothing: float = 0.1
    """Label smoothing of the layers' own classifiers."""

    def phases(self, num_layers: int) -> Sequence[range]:
        step = self.layers_at_a_time
        return [range(first, min(first + step, num_layers)) for first in range(0, num_layers, step)]

    def readout_inputs(self, index: int, num_layers: int) -> tuple[int, ...]:
        return tuple(range(index + 1))

    def predicts(self) -> bool:
        return True

    def build(self, index: int, layer: Layer, model_info: ModelInfo) -> GreedyRule:
        return GreedyRule(layer.features, model_info.num_classes, self.smoothing)


class GreedyRule(PooledRule):
    def __init__(self, features: int, num_classes: int, smoothing: float) -> None:
        super().__init__()
        self.classifier = nn.Linear(features, num_classes)
        self.smoothing = smoothing

    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        scores = self.classifier(outputs["pooled"].float())
        return F.cross_entropy(scores, context.labels, label_smoothing=self.smoothing)

    def scores(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        scores: Tensor = self.classifier(outputs["pooled"].float())
        return scores


PRESETS = {
    "greedy-fc": Preset(
        title="Layer after layer, all layers read out (plug-in), MLP[128 3] on digits",
        settings=Settings(
            data=DataSettings(data="digits"),
            net=MlpSettings(width=128, depth=3),
            method=GreedySettings(),
            train=TrainSettings(epochs=10, batch_size=64, lr=3e-3),
            readout=ReadoutSettings(readout_layers="last", readout_epochs=20, readout_lr=3e-3),
        ),
    )
}
