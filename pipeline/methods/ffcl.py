"""Forward-Forward Contrastive Learning (FFCL): images of one class made alike and those of different classes unlike,
layer by layer, then in the whole net.

Source: Ahamed et al. 2023, as Gananath 2024 describes it. Its third stage is backpropagation of the cross-entropy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import UserError
from pipeline.methods.base import METHODS, Activations, MethodConfig, ModelInfo, PooledRule, StepContext
from pipeline.methods.contrastive import cosine_embedding_contrast
from pipeline.nets.base import Layer, NetConfig
from pipeline.nets.whole import WholeNet


@METHODS.register
@dataclass(frozen=True, kw_only=True)
class FfclSettings(MethodConfig):
    """Cosine embedding loss of pairs of images: +1 for one class, -1 for two."""

    kind: ClassVar[str] = "ffcl"
    scope: Literal["local", "global"] = "local"
    """What a loss teaches. local: its layer alone, FFCL's first stage. global: the whole net, by backpropagation from
    the last layer's features, FFCL's second stage; the net is one piece then, in one stage."""
    pair_margin: float = 0.0
    """Cosine similarity below which two images of different classes are left alone."""

    def check(self) -> None:
        if not -1 <= self.pair_margin < 1:
            raise UserError(
                f"`pair_margin` {self.pair_margin}: a cosine similarity, so at least -1 and below 1 (torch: 0 to 0.5)."
            )

    def adapt(self, net: NetConfig) -> NetConfig:
        return net if self.scope == "local" else WholeNet(net=net, label="whole")

    def build(self, index: int, layer: Layer, model_info: ModelInfo) -> FfclRule:
        return FfclRule(self.pair_margin)


class FfclRule(PooledRule):
    """The cosine embedding loss of all pairs of a batch, on pooled features."""

    def __init__(self, pair_margin: float) -> None:
        super().__init__()
        self.pair_margin = pair_margin

    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        z = F.normalize(self.features(layer, outputs).float(), dim=1)
        return cosine_embedding_contrast(z, context.labels, margin=self.pair_margin)
