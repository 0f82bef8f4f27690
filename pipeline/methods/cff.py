"""Contrastive Forward-Forward with a margin that shrinks from layer to layer (CFF, CFF+M).

Source: Aghagolzadeh & Ezoji 2025, whose margin is that of Aghagolzadeh & Ezoji 2024.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import UserError
from pipeline.methods.base import METHODS, Activations, MethodConfig, ModelInfo, PooledRule, StepContext
from pipeline.methods.contrastive import clipped_share, marginal_contrastive_loss
from pipeline.nets.base import Layer

_SHOWN = 1024  # images and views that ``figures`` looks at

Schedule = Literal["linear", "parabolic", "cosine", "exponential"]


@METHODS.register
@dataclass(frozen=True, kw_only=True)
class CffSettings(MethodConfig):
    """Contrastive Forward-Forward. Both margins 0 give plain CFF."""

    kind: ClassVar[str] = "cff"
    figures: ClassVar[tuple[str, ...]] = ("margin_occupancy",)
    views: Literal[1, 2] = 2
    """Augmented views of each image: 2 is two-forward (Aghagolzadeh & Ezoji 2025), 1 one-forward (its Table 6)."""
    temperature: float = 0.15
    """Temperature τ of the contrastive loss."""
    margin_first: float = 0.4
    """Margin of the first layer."""
    margin_last: float = 0.1
    """Margin of the last layer."""
    margin_schedule: Schedule = "linear"
    """How the margin goes from first to last."""
    margin_exponent: float = 1.0
    """Exponent k of the parabolic, cosine and exponential schedules."""

    def check(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise UserError(
                f"`temperature` {self.temperature}: must be a number above 0 (Aghagolzadeh & Ezoji 2025: 0.15)."
            )
        for name, value in (("`margin_first`", self.margin_first), ("`margin_last`", self.margin_last)):
            if not 0 <= value <= 2:
                raise UserError(
                    f"{name} {value}: a margin on cosine similarity lies between 0 and 2 "
                    "(Aghagolzadeh & Ezoji 2025: 0.4 to 0.1)."
                )
        if self.margin_schedule == "exponential" and min(self.margin_first, self.margin_last) <= 0:
            raise UserError("`margin_schedule` exponential needs both margins above 0. Use linear to reach 0.")
        if not 0 < self.margin_exponent < math.inf:
            raise UserError(f"`margin_exponent` {self.margin_exponent}: must be a number above 0.")

    def build(self, index: int, layer: Layer, model_info: ModelInfo) -> CffRule:
        return CffRule(self, margin(self, index, model_info.num_layers))


def margin(settings: CffSettings, index: int, num_layers: int) -> float:
    """Margin m_l of layer ``index`` of ``num_layers``; a single layer has the first margin."""
    first, last, k = settings.margin_first, settings.margin_last, settings.margin_exponent
    x = index / (num_layers - 1) if num_layers > 1 else 0.0
    match settings.margin_schedule:
        case "linear":
            return first + (last - first) * x
        case "parabolic":
            return last + (first - last) * float((1 - x) ** (2 * k))
        case "cosine":
            return last + (first - last) * (1 + math.cos(math.pi * float(x**k))) / 2
        case "exponential":
            return float(first * (last / first) ** (x**k))


class CffRule(PooledRule):
    """One layer's loss: marginal contrastive on unit-length pooled features of all views."""

    margin: float

    def __init__(self, settings: CffSettings, margin: float) -> None:
        super().__init__()
        self.num_views = settings.views
        self.temperature = settings.temperature
        self.margin = margin

    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        # The loss is computed in float32 whatever the layer's precision: exp(s/τ) spans e^±6.7.
        z, labels = self._rows(layer, outputs, context)
        return marginal_contrastive_loss(z, labels, temperature=self.temperature, margin=self.margin)

    def figures(self, layer: Layer, outputs: Activations, context: StepContext) -> Mapping[str, Tensor]:
        """The share of positive pairs that the margin has brought to the clip, where no gradient pulls any more."""
        z, labels = self._rows(layer, outputs, context)
        return {"margin_occupancy": clipped_share(z[:_SHOWN], labels[:_SHOWN], margin=self.margin)}

    def _rows(self, layer: Layer, outputs: Activations, context: StepContext) -> tuple[Tensor, Tensor]:
        """Unit-length features (V·N, C) in float32, and the class of each."""
        z = F.normalize(self.features(layer, outputs).float(), dim=1)
        return z, context.labels.repeat(len(z) // len(context.labels))
