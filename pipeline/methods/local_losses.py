"""DGL and PredSim: layers that learn to predict, and to have images of one class look alike.

DGL     cross-entropy behind 1×1 convolutions and linear maps                        Belilovsky et al. 2020
PredSim (1 − β) cross-entropy + β ‖S(conv(h)) − S(one-hot labels)‖²/N²                Nøkland & Eidnes 2019

S holds the cosine similarities of the batch's vectors with each other, each vector less its own mean. Both as the
program of Ma et al. 2024 has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.methods.auxiliary import SCORES, AuxiliaryRule, GroupingMethod, check_feature_maps
from pipeline.methods.auxiliary_nets import PixelwiseHead, PooledLinear, last_maps
from pipeline.methods.base import METHODS, Activations, ModelInfo, StepContext
from pipeline.nets.base import Layer, NetConfig, Shape
from pipeline.nets.chain import LocalModule
from pipeline.nets.featuremaps import FeatureMapLayer, he_normal
from pipeline.nets.limits import check_sizes

SIMILAR = "similar"
"""A vector for each image (N, C), among a module's outputs: images of one class shall have similar ones."""


@METHODS.register
@dataclass(frozen=True, kw_only=True)
class DglSettings(GroupingMethod):
    """Decoupled greedy learning: each module predicts the class."""

    kind: ClassVar[str] = "dgl"

    def check_data(self, net: NetConfig, shape: Shape, num_classes: int) -> None:
        check_feature_maps(net, shape, self.module_sizes(net), why="dgl's auxiliary nets pool feature maps")

    def build_rule(self, index: int, module: LocalModule, model_info: ModelInfo) -> AuxiliaryRule:
        return AuxiliaryRule(PixelwiseHead(_maps(module), model_info.num_classes))


@METHODS.register
@dataclass(frozen=True, kw_only=True)
class PredsimSettings(GroupingMethod):
    """PredSim: each module predicts the class, and makes images of one class similar."""

    kind: ClassVar[str] = "predsim"
    similarity_weight: float = 0.99
    """Weight β of the similarities; prediction has 1 − β."""
    pooled_width: int = 512
    """Values at most that the linear classifier sees: feature maps are averaged until so many are left."""

    def check(self) -> None:
        super().check()
        check_sizes(("pooled_width", self.pooled_width))
        if not 0 <= self.similarity_weight <= 1:
            raise UserError(f"`similarity_weight` {self.similarity_weight}: a share from 0 to 1.")

    def check_data(self, net: NetConfig, shape: Shape, num_classes: int) -> None:
        check_feature_maps(net, shape, self.module_sizes(net), why="predsim compares feature maps")

    def build_rule(self, index: int, module: LocalModule, model_info: ModelInfo) -> PredsimRule:
        return PredsimRule(self, _maps(module), model_info)


class PredsimRule(AuxiliaryRule):
    """One module: (1 − β) cross-entropy + β similarity matching."""

    def __init__(self, settings: PredsimSettings, maps: FeatureMapLayer, model_info: ModelInfo) -> None:
        super().__init__(PooledLinear(maps, model_info.num_classes, most=settings.pooled_width))
        self.conv = nn.Conv2d(maps.features, maps.features, 3, padding=1, bias=False)
        he_normal(self.conv)
        self.weight, self.num_classes = settings.similarity_weight, model_info.num_classes

    def behind(self, layer: Layer, x: Tensor) -> Activations:
        maps = self.conv(x).flatten(2)  # (N, C, T)
        # A map says how much it varies over the image; one of a single pixel says itself.
        return {SCORES: self.auxiliary(x), SIMILAR: maps.std(dim=2) if maps.shape[2] > 1 else maps.squeeze(2)}

    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        one_hot = F.one_hot(context.labels, self.num_classes).float()
        apart = F.mse_loss(similarities(outputs[SIMILAR].float()), similarities(one_hot))
        return (1 - self.weight) * super().loss(layer, outputs, context) + self.weight * apart


def similarities(vectors: Tensor) -> Tensor:
    """Cosine similarity (N, N) of each two of the vectors (N, C), each less its own mean."""
    unit = F.normalize(vectors - vectors.mean(dim=1, keepdim=True), dim=1, eps=1e-8)
    return (unit @ unit.T).clamp(-1, 1)


def _maps(module: LocalModule) -> FeatureMapLayer:
    maps = last_maps(module)
    assert maps is not None, "check_data refuses other nets"
    return maps
