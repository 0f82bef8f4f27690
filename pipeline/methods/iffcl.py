"""Improved Forward-Forward Contrastive Learning (IFFCL): two nets, each of which is the other's target.

Source: Gananath 2024, Sections 2 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.methods.base import METHODS, Activations, MethodConfig, ModelInfo, Rule, StepContext
from pipeline.nets.base import Layer, NetConfig
from pipeline.nets.twins import TwinLayer, TwinNet

FIRST, SECOND = "x", "twin"
"""Activations of the two nets (N, …), which go through layers of their own."""


@METHODS.register
@dataclass(frozen=True, kw_only=True)
class IffclSettings(MethodConfig):
    """Twins with other initial weights see the same image; each layer makes their features point the same way."""

    kind: ClassVar[str] = "iffcl"
    figures: ClassVar[tuple[str, ...]] = ("twin_similarity",)
    predicts_by: Literal["first", "second", "both"] = "first"
    """The twin whose classifier predicts. both: the mean of their probabilities."""

    def adapt(self, net: NetConfig) -> TwinNet:
        return TwinNet(net=net)

    def predicts(self) -> bool:
        return True

    def build(self, index: int, layer: Layer, model_info: ModelInfo) -> IffclRule:
        assert isinstance(layer, TwinLayer), "adapt() makes twins of every layer"
        return IffclRule(self, layer, model_info.num_classes if index == model_info.num_layers - 1 else None)


class IffclRule(Rule):
    """One layer's loss: 1 − cos of the twins' pooled features, in the mean over the batch.

    The last layer has the net's classification layer as well, one for each twin: linear on detached features, softmax,
    binary cross-entropy with the one-hot label. Nothing of it reaches the layer itself.

    Args:
        num_classes: of the classification layers; None for all layers but the last.
    """

    per_sample = True

    def __init__(self, settings: IffclSettings, layer: TwinLayer, num_classes: int | None) -> None:
        super().__init__()
        self.predicts_by = settings.predicts_by
        classifiers = [] if num_classes is None else [nn.Linear(layer.readout_width, num_classes) for _ in range(2)]
        self.classifiers = nn.ModuleList(classifiers)

    def make_inputs(self, images: Tensor, context: StepContext) -> Activations:
        return {FIRST: images, SECOND: images}

    def forward(self, layer: Layer, activations: Activations, context: StepContext) -> Activations:
        assert isinstance(layer, TwinLayer)
        return {FIRST: layer.first(activations[FIRST]), SECOND: layer.second(activations[SECOND])}

    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        first, second = (layer.pool(outputs[name]).float() for name in (FIRST, SECOND))
        total = F.cosine_embedding_loss(first, second, torch.ones_like(first[:, 0]))
        for probabilities in self.probabilities(layer, outputs):
            targets = F.one_hot(context.labels, probabilities.shape[1]).to(probabilities.dtype)
            total = total + _cross_entropy(probabilities, targets)
        return total

    def probabilities(self, layer: Layer, outputs: Activations) -> list[Tensor]:
        """The twins' probabilities of the classes (N, Z) each, attached to their classifiers; none before the last
        layer."""
        seen = [layer.readout_input(outputs[name]).detach().float() for name in (FIRST, SECOND)]
        return [classifier(one).softmax(dim=1) for classifier, one in zip(self.classifiers, seen, strict=False)]

    def scores(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor | None:
        found = self.probabilities(layer, outputs)
        if not found:
            return None
        chosen = {"first": found[:1], "second": found[1:], "both": found}[self.predicts_by]
        return torch.stack(chosen).mean(dim=0)

    def figures(self, layer: Layer, outputs: Activations, context: StepContext) -> Mapping[str, Tensor]:
        first, second = (layer.pool(outputs[name]).float() for name in (FIRST, SECOND))
        return {"twin_similarity": F.cosine_similarity(first, second).mean()}


def _cross_entropy(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy () of probabilities (N, Z); no number where one of them is none.

    torch's own raises there instead, without naming layer or step.
    """
    unknown = probabilities.isnan()
    loss = F.binary_cross_entropy(probabilities.masked_fill(unknown, 0.0), targets)
    return loss.masked_fill(unknown.any(), math.nan)
