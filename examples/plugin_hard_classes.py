"""A method whose layers share a state that is no label embedding: how hard each class is.

    launch hard-classes-fc --plugin examples/plugin_hard_classes.py --stages 3

Each layer learns with a linear classifier of its own. The cross-entropy of an image counts by how hard its class is: a
moving average, over steps and layers, of the classes' losses. Every layer contributes its own in every step. Which
version a layer reads follows from the step alone, so any number of stages gives the serial bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from launch.presets.base import Preset
from pipeline.config.settings import DataSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.methods import METHODS, Activations, MethodConfig, ModelInfo, PooledRule, StepContext
from pipeline.methods.shared_state import SharedState, TrainingInfo
from pipeline.nets import Layer, MlpSettings
from pipeline.versions import Update, Versions


@METHODS.register
@dataclass(frozen=True, kw_only=True)
class HardClassesSettings(MethodConfig):
    """A classifier at each layer; hard classes count more."""

    kind: ClassVar[str] = "plugin-hard-classes"
    memory: float = 0.9
    """Share of the classes' difficulty that stays from step to step."""
    difficulty_lag: int = 1
    """Steps that an update may take to reach the last layer."""

    def shared_versions(self, num_layers: int, steps_per_epoch: int) -> Versions:
        return Versions(
            mode="shared-mean",
            lag=self.difficulty_lag,
            exact=False,
            num_layers=num_layers,
            steps_per_epoch=steps_per_epoch,
        )

    def shared_state(self, info: TrainingInfo) -> Difficulty:
        return Difficulty(self, info)

    def predicts(self) -> bool:
        return True

    def build(self, index: int, layer: Layer, model_info: ModelInfo) -> HardClassesRule:
        return HardClassesRule(layer.features, model_info.num_classes)


class Difficulty(SharedState):
    """Loss of each class (Z,), a moving average."""

    title = "difficulty of classes"

    def __init__(self, settings: HardClassesSettings, info: TrainingInfo) -> None:
        self.values = torch.ones(info.num_classes)
        self.versions = settings.shared_versions(info.num_layers, info.steps_per_epoch)
        self._memory = settings.memory

    def update(self, contributions: Mapping[Update, Tensor], updates: Sequence[Update]) -> None:
        mean = torch.stack([contributions[update] for update in updates]).mean(dim=0)
        self.values = self._memory * self.values + (1 - self._memory) * mean


class HardClassesRule(PooledRule):
    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(features, num_classes)

    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        assert context.shared is not None
        difficulty = context.shared.detach()
        weights = (difficulty / difficulty.mean())[context.labels]
        return (weights * self._losses(outputs, context)).mean()

    def contribution(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        assert context.shared is not None
        losses, old = self._losses(outputs, context).detach(), context.shared.detach()
        total = torch.zeros_like(old).index_add(0, context.labels, losses)
        count = torch.zeros_like(old).index_add(0, context.labels, torch.ones_like(losses))
        return torch.where(count > 0, total / count.clamp(min=1), old)  # a class that is not in the batch stays

    def scores(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        scores: Tensor = self.classifier(outputs["pooled"].float())
        return scores

    def _losses(self, outputs: Activations, context: StepContext) -> Tensor:
        return F.cross_entropy(self.classifier(outputs["pooled"].float()), context.labels, reduction="none")


PRESETS = {
    "hard-classes-fc": Preset(
        title="Hard classes count more (plug-in), MLP[64 3] on digits",
        settings=Settings(
            data=DataSettings(data="digits"),
            net=MlpSettings(width=64, depth=3),
            method=HardClassesSettings(),
            train=TrainSettings(epochs=20, batch_size=64, lr=3e-3, keep="accuracy"),
            readout=ReadoutSettings(mode="none"),
        ),
    )
}
