"""The Forward-Forward algorithm and two methods made of it: FF, SymBa and FF Collab.

With g⁺ a layer's goodness for an image with the right label and g⁻ with a wrong one:

FF      ½ softplus(θ − g⁺) + ½ softplus(g⁻ − θ)                                   Hinton 2022
SymBa   softplus(−α (g⁺ − g⁻))                                                    Lee & Song 2023
Collab  FF with g_l + sg[Σ_{j≠l} g_j] in place of layer l's g_l                   Lorberbom et al. 2024

each in the mean over the batch; as Aghagolzadeh & Ezoji 2025 have them, eqs. 2 and 7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import UserError, shortened
from pipeline.methods.base import METHODS, Activations, ModelInfo, StepContext
from pipeline.methods.goodness import COPIES, GOODNESS, GoodnessMethod, GoodnessRule
from pipeline.methods.shared_state import SharedState, TrainingInfo
from pipeline.nets.base import Layer
from pipeline.versions import LONGEST_LAG, Update, Versions


@METHODS.register
@dataclass(frozen=True, kw_only=True)
class FfSettings(GoodnessMethod):
    """Forward-Forward: goodness above a threshold with the right label, below it with a wrong one."""

    kind: ClassVar[str] = "ff"
    threshold: float = 2.0
    """Threshold θ of the goodness."""

    def check(self) -> None:
        super().check()
        if not 0 < self.threshold < math.inf:
            raise UserError(f"`threshold` {self.threshold}: must be a number above 0 (Aghagolzadeh & Ezoji 2025: 2).")

    def build(self, index: int, layer: Layer, model_info: ModelInfo) -> FfRule:
        return FfRule(self, index, layer, model_info)


class FfRule(GoodnessRule):
    """One layer's loss by FF."""

    def __init__(self, settings: FfSettings, index: int, layer: Layer, model_info: ModelInfo) -> None:
        super().__init__(settings, index, layer, model_info)
        self.threshold = settings.threshold

    def contrast(self, right: Tensor, wrong: Tensor) -> Tensor:
        return (F.softplus(self.threshold - right).mean() + F.softplus(wrong - self.threshold).mean()) / 2


@METHODS.register
@dataclass(frozen=True, kw_only=True)
class SymbaSettings(GoodnessMethod):
    """SymBa: more goodness with the right label than with a wrong one, without a threshold."""

    kind: ClassVar[str] = "symba"
    sharpness: float = 1.0
    """What α multiplies the difference of goodness by."""

    def check(self) -> None:
        super().check()
        if not 0 < self.sharpness < math.inf:
            raise UserError(f"`sharpness` {self.sharpness}: must be a number above 0 (Aghagolzadeh & Ezoji 2025: 1).")

    def build(self, index: int, layer: Layer, model_info: ModelInfo) -> SymbaRule:
        return SymbaRule(self, index, layer, model_info)


class SymbaRule(GoodnessRule):
    """One layer's loss by SymBa."""

    def __init__(self, settings: SymbaSettings, index: int, layer: Layer, model_info: ModelInfo) -> None:
        super().__init__(settings, index, layer, model_info)
        self.sharpness = settings.sharpness

    def contrast(self, right: Tensor, wrong: Tensor) -> Tensor:
        return F.softplus(-self.sharpness * (right - wrong)).mean()


@METHODS.register
@dataclass(frozen=True, kw_only=True)
class CollabSettings(FfSettings):
    """FF Collab: Forward-Forward on a layer's goodness and that of all other layers."""

    kind: ClassVar[str] = "ff-collab"
    goodness_lag: int = 1
    """Steps δ that later layers' goodness may take to come back. From 1 on no stage waits for it. Changes the
    numbers."""
    goodness_sync: Literal["lagged", "exact"] = "lagged"
    """exact: every layer reads later layers' goodness of the very step before. One batch at a time."""

    def check(self) -> None:
        super().check()
        if not 0 <= self.goodness_lag <= LONGEST_LAG:
            raise UserError(
                f"`goodness_lag` {shortened(self.goodness_lag)}: must be at least 0 and at most {LONGEST_LAG:,}."
            )

    def shared_versions(self, num_layers: int, steps_per_epoch: int) -> Versions:
        return Versions(
            mode="shared-sum",
            lag=self.goodness_lag,
            exact=self.goodness_sync == "exact",
            num_layers=num_layers,
            steps_per_epoch=steps_per_epoch,
        )

    def shared_state(self, info: TrainingInfo) -> LayersGoodness:
        return LayersGoodness(self, info)

    def build(self, index: int, layer: Layer, model_info: ModelInfo) -> CollabRule:
        return CollabRule(self, index, layer, model_info)


class LayersGoodness(SharedState):
    """Each layer's mean goodness in a step, with right labels and with wrong ones (L, 2); at first none."""

    title = "goodness of the layers"

    def __init__(self, settings: CollabSettings, info: TrainingInfo) -> None:
        self.values = torch.zeros(info.num_layers, 2)
        self.versions = settings.shared_versions(info.num_layers, info.steps_per_epoch)

    def update(self, contributions: Mapping[Update, Tensor], updates: Sequence[Update]) -> None:
        self.values = torch.stack([contributions[update] for update in updates]).sum(dim=0)  # each has a row of its own


class CollabRule(FfRule):
    """One layer's loss by FF Collab.

    Earlier layers' goodness is that of the same images, and travels with them. Later layers have not seen these images
    yet: theirs is the mean over the images of a step before, from the shared state.
    """

    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        assert context.shared is not None, "whoever trains the layer reads it"
        later_right, later_wrong = context.shared.detach()[self.index + 1 :].sum(dim=0)
        # Earlier layers' goodness came without a gradient.
        right, wrong = self.divided(outputs[GOODNESS].sum(dim=1), context)
        return self.contrast(right + later_right, wrong + later_wrong)

    def outputs_to_send(self, layer: Layer, outputs: Activations, context: StepContext) -> Activations:
        sent = super().outputs_to_send(layer, outputs, context)
        return {**sent, GOODNESS: outputs[GOODNESS].detach().contiguous()} if COPIES in outputs else sent

    def contribution(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        assert context.shared is not None, "asked for only where layers share a state"
        given = torch.zeros_like(context.shared)
        given[self.index] = outputs[GOODNESS][:, -1].detach().view(2, -1).mean(dim=1)  # right, wrong
        return given
