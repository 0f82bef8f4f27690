"""Self-contrastive Forward-Forward (SCFF): a sample with itself looks good, a sample with another one does not.

Source: Chen et al. 2025, eqs. 3 and 4 and Section 6; Forward-Forward is that of Hinton 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.methods.adamw import AdamW
from pipeline.methods.base import METHODS, Activations, BatchPosition, MethodConfig, ModelInfo, Rule, StepContext
from pipeline.nets.base import Layer, NetConfig
from pipeline.nets.paired import PairedLayer, PairedNet
from pipeline.per_layer import check_per_layer, of_layer

SECOND = "second"
"""The second view (N, …) of each sample, beside ``x``, the first, where samples come in two."""

PARTNERS = "partners"
"""W·x′ + b of second views (N, C, …), with a gradient, where there are any. It does not travel."""

POSITIVE = "positive"
"""W·x + W·x + 2b of samples paired with themselves (N, C, …), with a gradient. It does not travel."""

NEGATIVE = "negative"
"""What a layer that goes on with pairs gets of samples paired with others (N, …), beside ``x``, those paired with
themselves. Where readouts alone learn there is none."""


@METHODS.register
@dataclass(frozen=True, kw_only=True)
class ScffSettings(MethodConfig):
    """Self-contrastive Forward-Forward. It needs no labels; of settings with several values each layer has one."""

    kind: ClassVar[str] = "scff"
    figures: ClassVar[tuple[str, ...]] = ("goodness_positive", "goodness_negative")
    needs_labels: ClassVar[bool] = False
    smallest_batch: ClassVar[int] = 2
    views: Literal[1, 2] = 1
    """Augmented views of each sample. 2: a pair's halves are different views, of one sample or of two. 1: a pair of a
    sample with itself has the same view twice."""
    layer_order: Literal["together", "in-turn"] = "together"
    """together: all layers learn at the same time. in-turn: one after the other, `epochs` each; those that have
    learned are frozen (Chen et al. 2025)."""
    positive_threshold: tuple[float, ...] = (4.0,)
    """Θ⁺ above which the goodness of a sample with itself shall be: one for all layers or one for each."""
    negative_threshold: tuple[float, ...] = (6.0,)
    """Θ⁻ below which the goodness of a sample with another shall be: one for all layers or one for each."""
    goodness_penalty: tuple[float, ...] = (0.0,)
    """λ of the norm of a sample's goodness, which keeps it from growing: one for all layers or one for each."""
    layer_lr: tuple[float, ...] = (1.0,)
    """What the learning rate (`lr`) of each layer is multiplied by: one for all layers or one for each. 0: the layer
    keeps the random weights that it begins with, as what learning is compared with."""
    layer_weight_decay: tuple[float, ...] = (1.0,)
    """What the weight decay (`weight_decay`) of each layer is multiplied by: one for all layers or one for each."""
    lr_gamma: tuple[float, ...] = (1.0,)
    """What each layer's learning rate is multiplied by every `gamma_steps`: one for all layers or one for each."""
    gamma_steps: tuple[int, ...] = (500,)
    """Steps, from the beginning of a layer's training, between two such multiplications: one for all layers or one for
    each."""
    readout_span: int = 0
    """Layers that a readout sees side by side: its own and those before it, so many at most. 0: all of them."""

    def check(self) -> None:
        for name, values in (
            ("`goodness_penalty`", self.goodness_penalty),
            ("`layer_lr`", self.layer_lr),
            ("`layer_weight_decay`", self.layer_weight_decay),
        ):
            _check(name, values, lambda value: 0 <= value < math.inf, "numbers of at least 0")
        for name, values in (
            ("`positive_threshold`", self.positive_threshold),
            ("`negative_threshold`", self.negative_threshold),
        ):
            _check(name, values, math.isfinite, "numbers")
        _check("`lr_gamma`", self.lr_gamma, lambda value: 0 < value <= 1, "numbers above 0 and at most 1")
        _check("`gamma_steps`", self.gamma_steps, lambda value: value >= 1, "numbers of at least 1")
        _check("`readout_span`", (self.readout_span,), lambda value: value >= 0, "a number of at least 0")

    def adapt(self, net: NetConfig) -> NetConfig:
        if not isinstance(net, PairedNet):
            raise UserError(
                f"method scff: the layers of {net.describe()} cannot take pairs of samples. Use net paired-mlp, "
                "paired-conv or birnn."
            )
        check_per_layer(
            net.num_layers,
            positive_threshold=self.positive_threshold,
            negative_threshold=self.negative_threshold,
            goodness_penalty=self.goodness_penalty,
            layer_lr=self.layer_lr,
            layer_weight_decay=self.layer_weight_decay,
            lr_gamma=self.lr_gamma,
            gamma_steps=self.gamma_steps,
        )
        return net

    def optimizer(
        self, index: int, parameters: Sequence[nn.Parameter], *, lr: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        decay = weight_decay * of_layer(self.layer_weight_decay, index)
        return AdamW(parameters, lr=lr * of_layer(self.layer_lr, index), weight_decay=decay, fused=True)

    def lr_factor(self, index: int, where: BatchPosition) -> float:
        return of_layer(self.lr_gamma, index) ** (where.phase_step // of_layer(self.gamma_steps, index))

    def phases(self, num_layers: int) -> Sequence[range]:
        if self.layer_order == "together":
            return super().phases(num_layers)
        return [range(index, index + 1) for index in range(num_layers)]

    def readout_inputs(self, index: int, num_layers: int) -> tuple[int, ...]:
        first = max(0, index + 1 - self.readout_span) if self.readout_span else 0
        return tuple(range(first, index + 1))

    def build(self, index: int, layer: Layer, model_info: ModelInfo) -> ScffRule:
        assert isinstance(layer, PairedLayer), "adapt() refuses other nets"
        return ScffRule(self, index, pairs=layer.pairs)


class ScffRule(Rule):
    """One layer's loss, with a the ReLU of W·x + W·x′ + 2b and goodness g = 1/C Σ_c a_c² at each position:

        L = mean softplus(Θ⁺ − g⁺) + mean softplus(g⁻ − Θ⁻) + λ mean_n ‖g⁺_n‖

    g⁺ is that of a sample with itself, g⁻ with another of the batch, r places on: 1 ≤ r < N, drawn anew in every step,
    and 1 in evaluation. With two views x is a sample's first, and x′ its own second or another's. Positions of
    sequences are time steps, and the means are over those that there are.

    Args:
        pairs: whether the layer pairs its inputs anew.
    """

    per_sample = True

    def __init__(self, settings: ScffSettings, index: int, *, pairs: bool) -> None:
        super().__init__()
        self.num_views = settings.views
        if pairs:
            self.eager = "which samples it pairs is taken at the host from the seed of its random numbers"
        self.positive_threshold = of_layer(settings.positive_threshold, index)
        self.negative_threshold = of_layer(settings.negative_threshold, index)
        self.penalty = of_layer(settings.goodness_penalty, index)

    def make_inputs(self, images: Tensor, context: StepContext) -> Activations:
        count = len(context.labels)  # readouts learn from one view, and evaluation may see the plain images
        return {"x": images} if len(images) == count else {"x": images[:count], SECOND: images[count:]}

    def forward(self, layer: Layer, activations: Activations, context: StepContext) -> Activations:
        """``weighed``: W·x + b, with a gradient, as the others have it, and of second views ``partners``; ``positive``:
        of samples with themselves, and of what came paired with others ``negative``. ``x``: what is passed on of
        samples with themselves."""
        assert isinstance(layer, PairedLayer), "adapt() refuses other nets"
        weighed = layer.weigh(activations["x"])
        outputs = {"weighed": weighed}
        if SECOND in activations:
            outputs[PARTNERS] = layer.weigh(activations[SECOND])
            positive = layer.with_others(weighed, outputs[PARTNERS])
        else:
            positive = layer.with_itself(weighed)
        outputs |= {"x": layer.passed_on(positive.detach()), POSITIVE: positive}
        if NEGATIVE in activations:
            outputs[NEGATIVE] = layer.with_itself(layer.weigh(activations[NEGATIVE]))
        return outputs

    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        assert isinstance(layer, PairedLayer), "adapt() refuses other nets"
        positive, negative = outputs[POSITIVE], self._negative(layer, outputs, context)
        places = layer.places(positive), layer.places(negative)
        return self.contrast(goodness(positive), goodness(negative), *places)

    def contrast(
        self,
        positive: Tensor,
        negative: Tensor,
        positive_places: Tensor | None = None,
        negative_places: Tensor | None = None,
    ) -> Tensor:
        """The loss () of the goodness of samples with themselves and with others (N, …), 0 where there is no place."""
        norms = torch.linalg.vector_norm(positive.reshape(len(positive), -1), dim=1)  # (N,)
        above = _mean(F.softplus(self.positive_threshold - positive), positive_places)
        below = _mean(F.softplus(negative - self.negative_threshold), negative_places)
        loss: Tensor = above + below + self.penalty * norms.mean()
        return loss

    def outputs_to_send(self, layer: Layer, outputs: Activations, context: StepContext) -> Activations:
        assert isinstance(layer, PairedLayer), "adapt() refuses other nets"
        sent = {"x": outputs["x"].contiguous()}
        if not layer.next_pairs and not context.where.for_readouts:
            sent[NEGATIVE] = layer.passed_on(self._negative(layer, outputs, context).detach()).contiguous()
        return sent

    def figures(self, layer: Layer, outputs: Activations, context: StepContext) -> Mapping[str, Tensor]:
        assert isinstance(layer, PairedLayer), "adapt() refuses other nets"
        pairs = {"positive": outputs[POSITIVE], "negative": self._negative(layer, outputs, context)}
        return {f"goodness_{name}": _mean(goodness(one), layer.places(one)) for name, one in pairs.items()}

    def _negative(self, layer: PairedLayer, outputs: Activations, context: StepContext) -> Tensor:
        if not layer.pairs:
            return outputs[NEGATIVE]
        partners = outputs.get(PARTNERS, outputs["weighed"])
        # The generator's seed is a hash of seed, layer and step: as good as a number drawn, and the same for the loss
        # and for what is sent. In evaluation a last batch of one sample has no other.
        drawn = context.generator.initial_seed() if context.generator is not None else 0
        shift = 1 + drawn % max(1, len(partners) - 1)
        return layer.with_others(outputs["weighed"], partners.roll(-shift, dims=0))


def goodness(weighed: Tensor) -> Tensor:
    """Mean over channels of ReLU(·)² of (N, C, …): (N, …), float32 whatever the layer's precision."""
    return F.relu(weighed.float()).square().mean(dim=1)


def _mean(values: Tensor, places: Tensor | None) -> Tensor:
    """Mean () over the places (N, …) that there are; None: over all."""
    return values.mean() if places is None else (values * places).sum() / places.sum().clamp(min=1)


def _check(name: str, values: Sequence[float], fits: Callable[[float], bool], allowed: str) -> None:
    if not all(fits(value) for value in values):
        raise UserError(f"{name} {' '.join(f'{value:g}' for value in values)}: must be {allowed}.")
