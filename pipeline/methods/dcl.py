"""Dictionary contrastive learning (DCL, DC-FL; Choi et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from pipeline.methods.base import METHODS, Activations, ModelInfo, StepContext
from pipeline.methods.cfl import LabelEmbeddingMethod, LabelEmbeddingRule
from pipeline.methods.embeddings import EmbeddingSettings
from pipeline.nets.base import Layer


@METHODS.register
@dataclass(frozen=True, kw_only=True)
class DclSettings(LabelEmbeddingMethod):
    """Dictionary contrastive learning. Modes: in-turn is DC-FL, last DC-FL-O, per-layer DC-FL-LD, static DCL-S."""

    kind: ClassVar[str] = "dcl"
    embedding: EmbeddingSettings = field(default_factory=lambda: EmbeddingSettings(embedding_mode="in-turn"))

    def build(self, index: int, layer: Layer, model_info: ModelInfo) -> DclRule:
        return DclRule(self, layer, model_info)


class DclRule(LabelEmbeddingRule):
    """One layer's loss: cross-entropy over the classes of the similarities, without noise (Choi et al. 2024, eq. 2)."""

    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        similarities = self.compare(self.features(layer, outputs).float(), self.targets(layer, context))
        return F.cross_entropy(similarities, context.labels)
