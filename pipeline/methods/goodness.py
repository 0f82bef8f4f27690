"""What the Forward-Forward methods have in common: images with labels, and how good they look to each layer.

Source: Hinton 2022; on Vision Transformers Aghagolzadeh & Ezoji 2025, Section 3.4.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import UserError
from pipeline.methods.base import Activations, BatchPosition, MethodConfig, ModelInfo, Rule, StepContext
from pipeline.methods.label_input import LabelInput, check_room, labelled
from pipeline.nets.base import Layer, NetConfig, Shape

COPIES = "x"
"""Images with labels. In training (2·N, …): N with the right label, then N with a wrong one. In evaluation (Z·N, …):
all with the first class's label, then all with the second's, and so on."""

NEUTRAL = "neutral"
"""Images with the neutral label (N, …), which readouts and analyses see. Not in training."""

GOODNESS = "goodness"
"""Goodness of each copy at every layer so far (2·N or Z·N, l + 1), float32."""


@dataclass(frozen=True, kw_only=True)
class GoodnessMethod(MethodConfig):
    """What the settings of the Forward-Forward methods have in common."""

    figures: ClassVar[tuple[str, ...]] = ("goodness_right", "goodness_wrong")
    online_readouts: ClassVar[bool] = False
    chains: ClassVar[bool] = False
    label_scale: float = 1.0
    """What the label that a net is shown is multiplied by: a one in a pixel, or a patch of random numbers N(0, 1)."""

    later_lr: float = 1.0
    """What the learning rate of all layers but the first is multiplied by. What reaches them has length 1, and needs
    larger weights than images do."""

    def check(self) -> None:
        for name, value in (("`label_scale`", self.label_scale), ("`later_lr`", self.later_lr)):
            if not 0 < value < math.inf:
                raise UserError(f"{name} {value}: must be a number above 0.")

    def adapt(self, net: NetConfig) -> NetConfig:
        return labelled(net)

    def check_data(self, net: NetConfig, shape: Shape, num_classes: int) -> None:
        check_room(net, shape, num_classes)

    def predicts(self) -> bool:
        return True

    def lr_factor(self, index: int, where: BatchPosition) -> float:
        return 1.0 if index == 0 else self.later_lr

    def readout_inputs(self, index: int, num_layers: int) -> tuple[int, ...]:
        """All layers but the first, up to this one (Hinton 2022); of the first one itself."""
        return tuple(range(min(1, index), index + 1))


class GoodnessRule(Rule):
    """One layer learns to find images with the right label good, and those with a wrong label not.

    Goodness is the mean over features of the pooled feature's square, in which the label's own token does not count.
    Between layers every sample is divided by its length, so that a layer cannot see how good it was to those before.

    Args:
        index: of the layer, 0-based.
    """

    per_sample = True

    def __init__(self, settings: GoodnessMethod, index: int, layer: Layer, model_info: ModelInfo) -> None:
        super().__init__()
        self.index, self.num_classes = index, model_info.num_classes
        self.label = LabelInput(layer, self.num_classes, scale=settings.label_scale) if index == 0 else None

    @abstractmethod
    def contrast(self, right: Tensor, wrong: Tensor) -> Tensor:
        """The loss () of goodness with the right label (1, N) and with W wrong ones (W, N)."""

    def make_inputs(self, images: Tensor, context: StepContext) -> Activations:
        assert self.label is not None, "asked of the first layer"
        labels, num = context.labels, self.num_classes
        if context.where.training:
            steps = torch.randint(1, num, labels.shape, generator=context.generator, device=labels.device)
            shown = torch.cat([labels, (labels + steps) % num])
            return {COPIES: self.label(images.repeat(2, 1, 1, 1), shown)}
        inputs = {NEUTRAL: self.label(images, torch.full_like(labels, self.label.neutral))}
        if not context.where.for_readouts:
            classes = torch.arange(num, device=labels.device).repeat_interleave(len(images))
            inputs[COPIES] = self.label(images.repeat(num, 1, 1, 1), classes)
        return inputs

    def forward(self, layer: Layer, activations: Activations, context: StepContext) -> Activations:
        outputs: Activations = {}
        for name in (COPIES, NEUTRAL):
            if name in activations:
                x = activations[name]
                x = x if self.index == 0 else F.normalize(x.flatten(1), dim=1).view_as(x)
                outputs[name], outputs[_pooled(name)] = layer.forward_pooled(x)
        if COPIES in outputs:
            own = outputs[_pooled(COPIES)].float().square().mean(dim=1, keepdim=True)  # (R, 1)
            before = [activations[GOODNESS]] if GOODNESS in activations else []
            outputs[GOODNESS] = torch.cat([*before, own], dim=1)
        return outputs

    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        """Against one wrong label in training, against all of them in evaluation: what training has in the mean."""
        return self.contrast(*self.divided(outputs[GOODNESS][:, -1], context))

    def outputs_to_send(self, layer: Layer, outputs: Activations, context: StepContext) -> Activations:
        # In training a layer of FF and SymBa has no use for other layers' goodness.
        names = (COPIES,) if context.where.training else (COPIES, NEUTRAL, GOODNESS)
        return {name: outputs[name].detach().contiguous() for name in names if name in outputs}

    def features(self, layer: Layer, outputs: Activations) -> Tensor:
        return outputs[_pooled(NEUTRAL)]

    def readout_input(self, layer: Layer, outputs: Activations) -> Tensor:
        return layer.readout_input(outputs[NEUTRAL])

    def scores(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        """Goodness with each class's label, added up from the second layer to this one; of the first one its own."""
        goodness = outputs[GOODNESS][:, min(1, self.index) :].sum(dim=1)
        return goodness.view(self.num_classes, -1).T

    def goodness(self, layer: Layer, outputs: Activations) -> Tensor:
        return outputs[GOODNESS][:, -1].view(self.num_classes, -1).T

    def figures(self, layer: Layer, outputs: Activations, context: StepContext) -> Mapping[str, Tensor]:
        right, wrong = self.divided(outputs[GOODNESS][:, -1], context)
        return {"goodness_right": right.mean(), "goodness_wrong": wrong.mean()}

    def divided(self, goodness: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
        """Of the copies' goodness: that with the right label (1, N), and that with wrong ones (W, N)."""
        if context.where.training:
            right, wrong = goodness.chunk(2)
            return right[None], wrong[None]
        by_class, labels = goodness.view(self.num_classes, -1), context.labels[None]  # (Z, N), (1, N)
        others = (labels + torch.arange(1, self.num_classes, device=labels.device)[:, None]) % self.num_classes
        return by_class.gather(0, labels), by_class.gather(0, others)


def _pooled(name: str) -> str:
    return f"{name}-pooled"
