"""InfoPro: modules that keep what their input tells about labels, and about the image (Wang et al. 2021).

With h the activations of one of K − 1 modules, x the image in [0, 1] and y the labels:

    λ_x BCE(decoder(h), x) + λ_y L(head(h), y)

L is supervised contrast (τ = 0.07) of normalised projections, or cross-entropy. Without reconstruction this is local
learning as Choi et al. 2024 compare with: contrast LL-cont, predict LL-pred; with it and contrast LL-contrec.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.augment import shift_and_scale
from pipeline.errors import UserError
from pipeline.methods.auxiliary import SCORES, AuxiliaryRule, GroupingMethod, check_feature_maps
from pipeline.methods.auxiliary_nets import Decoder, Head, PooledLinear, last_maps
from pipeline.methods.base import METHODS, Activations, ModelInfo, StepContext
from pipeline.methods.contrastive import marginal_contrastive_loss
from pipeline.nets.base import Layer, NetConfig, Shape
from pipeline.nets.chain import LocalModule
from pipeline.nets.limits import check_sizes

IMAGE = "image"
"""The image (N, channels, H, W) uint8 as the network sees it, cropped and flipped: what decoders reconstruct. It
travels along as far as there are any."""

PROJECTION, RECONSTRUCTION = "projection", "reconstruction"
"""A head's projections (N, width) and a decoder's logits (N, channels, H, W), among a module's outputs."""


@METHODS.register
@dataclass(frozen=True, kw_only=True)
class InfoproSettings(GroupingMethod):
    """InfoPro: local modules with a head that contrasts or predicts, and a decoder that reconstructs the image."""

    kind: ClassVar[str] = "infopro"
    task: Literal["contrast", "predict"] = "contrast"
    """What heads learn. contrast: supervised contrast of their projections. predict: the class, by cross-entropy."""
    temperature: float = 0.07
    """Temperature τ of `task` contrast."""
    head: Literal["1c2f", "linear"] = "1c2f"
    """What stands between feature maps and projection or scores. 1c2f: a convolution and two linear maps (Wang et al.
    2021). linear: of maps averaged until few enough values are left, one linear map (as Choi et al. 2024 count)."""
    head_width: int = 128
    """Units of a 1c2f head's hidden layer, and length of a projection."""
    pooled_width: int = 2048
    """Values that a linear head sees at most: feature maps are averaged until so many are left."""
    reconstruction_first: float = 0.0
    """Weight λ_x of reconstruction at the first module. Where it is 0 at both ends there are no decoders, and no images
    travel along."""
    reconstruction_last: float = 0.0
    """Weight λ_x at the last module but one; it changes linearly between."""
    task_first: float = 1.0
    """Weight λ_y of what heads learn, at the first module."""
    task_last: float = 1.0
    """Weight λ_y at the last module but one; it changes linearly between."""

    def check(self) -> None:
        super().check()
        check_sizes(("head_width", self.head_width), ("pooled_width", self.pooled_width))
        if not 0 < self.temperature < math.inf:
            raise UserError(f"`temperature` {self.temperature}: must be a number above 0 (Wang et al. 2021: 0.07).")
        for name in ("reconstruction_first", "reconstruction_last", "task_first", "task_last"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"`{name}` {getattr(self, name)}: must be a number of at least 0.")
        for place in ("first", "last"):
            if getattr(self, f"reconstruction_{place}") == getattr(self, f"task_{place}") == 0:
                raise UserError(
                    f"`reconstruction_{place}` 0, `task_{place}` 0: a module would learn nothing. Give one of them."
                )

    @property
    def reconstructs(self) -> bool:
        """Whether there are decoders."""
        return max(self.reconstruction_first, self.reconstruction_last) > 0

    def check_data(self, net: NetConfig, shape: Shape, num_classes: int) -> None:
        if self.reconstructs:
            check_feature_maps(net, shape, self.module_sizes(net), why="reconstruction enlarges feature maps")

    def weights(self, index: int, num_modules: int) -> tuple[float, float]:
        """λ_x and λ_y of a module that is not the last."""
        share = index / (num_modules - 2) if num_modules > 2 else 0.0
        return (
            (1 - share) * self.reconstruction_first + share * self.reconstruction_last,
            (1 - share) * self.task_first + share * self.task_last,
        )

    def build_rule(self, index: int, module: LocalModule, model_info: ModelInfo) -> InfoproRule:
        return InfoproRule(self, index, module, model_info)


class InfoproRule(AuxiliaryRule):
    """One module: λ_x reconstruction + λ_y contrast or prediction."""

    def __init__(self, settings: InfoproSettings, index: int, module: LocalModule, model_info: ModelInfo) -> None:
        predicts = settings.task == "predict"
        outputs = model_info.num_classes if predicts else settings.head_width
        super().__init__(_head(settings, module, outputs))
        self.output = SCORES if predicts else PROJECTION
        self.temperature = settings.temperature
        self.reconstruction_weight, self.task_weight = settings.weights(index, model_info.num_layers)
        maps = last_maps(module)
        self.sees_maps = maps is not None
        self.reconstructs = settings.reconstructs
        self.passes_image = self.reconstructs and index < model_info.num_layers - 2
        if self.reconstructs:
            assert maps is not None, "check_data refuses other nets"
            self.decoder = Decoder(maps.features, module.shape)
            shift, scale = shift_and_scale(model_info.mean, model_info.std)
            self.register_buffer("shift", shift, persistent=False)
            self.register_buffer("scale", scale, persistent=False)

    def make_inputs(self, images: Tensor, context: StepContext) -> Activations:
        if not self.reconstructs or context.where.for_readouts:
            return {"x": images}
        pixels = images / self.get_buffer("scale") + self.get_buffer("shift")
        return {"x": images, IMAGE: pixels.round().clamp(0, 255).to(torch.uint8)}

    def forward(self, layer: Layer, activations: Activations, context: StepContext) -> Activations:
        outputs = super().forward(layer, activations, context)
        if IMAGE in activations:
            outputs |= {IMAGE: activations[IMAGE], RECONSTRUCTION: self.decoder(outputs["x"])}
        return outputs

    def behind(self, layer: Layer, x: Tensor) -> Activations:
        return {self.output: self.auxiliary(x if self.sees_maps else layer.readout_input(x))}

    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        loss = self.task_weight * self.task_loss(outputs, context.labels)
        if self.reconstructs:
            image = outputs[IMAGE].float() / 255
            wrong = F.binary_cross_entropy_with_logits(outputs[RECONSTRUCTION].float(), image)
            loss = loss + self.reconstruction_weight * wrong
        return loss

    def task_loss(self, outputs: Activations, labels: Tensor) -> Tensor:
        """Contrast of the projections, or cross-entropy of the scores ()."""
        if SCORES in outputs:
            return F.cross_entropy(outputs[SCORES].float(), labels)
        z = F.normalize(outputs[PROJECTION].float(), dim=1)
        return marginal_contrastive_loss(z, labels, temperature=self.temperature, margin=0.0)

    def onward(self, outputs: Activations) -> Activations:
        image = {IMAGE: outputs[IMAGE]} if self.passes_image and IMAGE in outputs else {}
        return {**super().onward(outputs), **image}


def _head(settings: InfoproSettings, module: LocalModule, outputs: int) -> nn.Module:
    """Between what a module gives and so many outputs."""
    if settings.head == "1c2f":
        return Head(module, width=settings.head_width, outputs=outputs)
    maps = last_maps(module)
    if maps is None:
        return nn.Linear(module.readout_width, outputs)
    return PooledLinear(maps, outputs, most=settings.pooled_width)
