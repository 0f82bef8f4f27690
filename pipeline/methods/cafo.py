"""The Cascaded Forward algorithm (CaFo): fixed layers, each with a linear predictor of its own; all predict together.

Source: Zhao et al. 2023, and the authors' program. Sparsemax and its loss: Martins & Astudillo 2016.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import RunError, UserError
from pipeline.methods.base import METHODS, Activations, MethodConfig, ModelInfo, Rule, StepContext
from pipeline.nets.base import Layer, NetConfig, Shape
from pipeline.nets.sizes import readout_widths

VOTES = "votes"
"""What all layers up to one predict of an image, added up (N, Z), float32. In evaluation alone."""

WIDEST = 1 << 14
"""Features that a closed form takes at most: it adds up a matrix of so many squared, 2 GiB in float64."""

Predictor = Literal["closed-form", "cross-entropy", "sparsemax"]


@METHODS.register
@dataclass(frozen=True, kw_only=True)
class CafoSettings(MethodConfig):
    """A linear predictor on every layer; the layers keep the weights that they begin with."""

    kind: ClassVar[str] = "cafo"
    predictor: Predictor = "closed-form"
    """How a layer's predictor learns. closed-form: least squares on one-hot labels, solved at the end of each epoch;
    one epoch is enough. cross-entropy, sparsemax: by the gradient of that loss."""
    ridge: float = 1e-3
    """Of the closed form: what is added to the diagonal of the features' mean products, above 0."""

    def check(self) -> None:
        if not 0 < self.ridge < math.inf:
            raise UserError(f"`ridge` {self.ridge}: must be a number above 0.")

    def check_data(self, net: NetConfig, shape: Shape, num_classes: int) -> None:
        widest = max(readout_widths(net, shape))
        if self.predictor == "closed-form" and widest > WIDEST:
            raise UserError(
                f"`predictor` closed-form: a layer of {net.describe()} has {widest:,} features on images of "
                f"{shape[1]}×{shape[2]} pixels, and least squares is for at most {WIDEST:,}. "
                "Use `predictor` cross-entropy, smaller layers, or smaller images (`image_size`)."
            )

    def predicts(self) -> bool:
        return True

    def build(self, index: int, layer: Layer, model_info: ModelInfo) -> CafoRule:
        if self.predictor == "closed-form":
            return ClosedFormRule(layer, model_info.num_classes, self.ridge)
        return GradientRule(layer, model_info.num_classes, sparse=self.predictor == "sparsemax")


class CafoRule(Rule):
    """One layer's predictor: scores (N, Z) = features (N, D) · weight (D, Z), without a bias.

    Its features are what a readout of the layer sees. Batch norm evaluates by the mean over all batches, as the layer
    stays as it is.
    """

    weight: Tensor
    per_sample = True

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        for module in layer.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = None
                self.eager = "its batch norm takes a mean over all batches, which the host counts"

    def forward(self, layer: Layer, activations: Activations, context: StepContext) -> Activations:
        with torch.no_grad():
            return {**activations, "x": layer(activations["x"])}

    def outputs_to_send(self, layer: Layer, outputs: Activations, context: StepContext) -> Activations:
        sent = {"x": outputs["x"].contiguous()}
        if not context.where.training and not context.where.for_readouts:
            sent[VOTES] = self.scores(layer, outputs, context).detach().contiguous()
        return sent

    def linear(self, layer: Layer, outputs: Activations) -> Tensor:
        """The predictor's scores (N, Z), attached to its weight."""
        return layer.readout_input(outputs["x"]).float() @ self.weight

    def probabilities(self, linear: Tensor) -> Tensor:
        """What the layer alone predicts (N, Z), each row with the sum 1."""
        return linear.softmax(dim=1)

    def scores(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        """The probabilities of all layers up to this one, added up."""
        own = self.probabilities(self.linear(layer, outputs))
        return outputs[VOTES] + own if VOTES in outputs else own


class ClosedFormRule(CafoRule):
    """The predictor of least squared error: weight = (XᵀX/n + λI)⁻¹ XᵀY/n over all n images that were trained on.

    X (n, D) are their features, Y (n, Z) their one-hot labels. Sums are in float64. With more epochs they go on: the
    images' further views are added, and without augmentation the solution stays as it is.
    """

    products: Tensor | None
    """XᵀX (D, D); None before the first batch."""
    label_products: Tensor | None
    """XᵀY (D, Z); None before the first batch."""
    count: Tensor

    def __init__(self, layer: Layer, num_classes: int, ridge: float) -> None:
        super().__init__(layer)
        self.ridge = ridge
        self.register_buffer("weight", torch.zeros(layer.readout_width, num_classes))
        self.register_buffer("products", None, persistent=False)
        self.register_buffer("label_products", None, persistent=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64), persistent=False)

    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        """The squared error of the predictor as it is, added up over classes. It has no gradient."""
        errors = self.linear(layer, outputs) - F.one_hot(context.labels, self.weight.shape[1])
        return errors.square().sum(dim=1).mean()

    def collect(self, layer: Layer, outputs: Activations, context: StepContext) -> None:
        seen = layer.readout_input(outputs["x"]).float()  # (N, D)
        products = seen.T @ seen
        label_products = seen.T @ F.one_hot(context.labels, self.weight.shape[1]).to(seen.dtype)
        if self.products is None or self.label_products is None:
            self.products, self.label_products = products.double(), label_products.double()
        else:
            self.products += products
            self.label_products += label_products
        self.count += len(seen)

    def end_epoch(self) -> None:
        if self.products is None or self.label_products is None:
            return
        matrix = self.products / self.count
        matrix.diagonal().add_(self.ridge)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if failed:
            raise RunError(
                f"`ridge` {self.ridge}: the features' products are singular in float64, so least squares has no "
                "solution. Give a larger `ridge`."
            )
        self.weight.copy_(torch.cholesky_solve(self.label_products / self.count, factor))


class GradientRule(CafoRule):
    """A predictor that learns by the gradient of cross-entropy, or of the sparsemax loss. It begins with zeros.

    The program begins with ones, which give every class the same score, as zeros do.
    """

    def __init__(self, layer: Layer, num_classes: int, *, sparse: bool) -> None:
        super().__init__(layer)
        self.sparse = sparse
        self.weight = nn.Parameter(torch.zeros(layer.readout_width, num_classes))

    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        linear = self.linear(layer, outputs)
        return (sparsemax_loss if self.sparse else F.cross_entropy)(linear, context.labels)

    def probabilities(self, linear: Tensor) -> Tensor:
        return sparsemax(linear) if self.sparse else super().probabilities(linear)


def threshold(scores: Tensor) -> Tensor:
    """τ (N, 1) of scores z (N, Z), by which sparsemax(z) = max(0, z − τ) has the sum 1."""
    ordered = scores.sort(dim=1, descending=True).values
    numbers = torch.arange(1, scores.shape[1] + 1, dtype=scores.dtype, device=scores.device)
    sums = ordered.cumsum(dim=1)
    # (N, 1), of the support: none where scores are no number, which shall come out as such
    size = (1 + numbers * ordered > sums).sum(dim=1, keepdim=True).clamp(min=1)
    return (sums.gather(1, size - 1) - 1) / size


def sparsemax(scores: Tensor) -> Tensor:
    """The point of the simplex that is nearest to scores (N, Z) (Martins & Astudillo 2016, eq. 2)."""
    return F.relu(scores - threshold(scores))


def sparsemax_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """The loss () whose gradient at scores (N, Z) is sparsemax − one-hot, in the mean (the same, eq. 22)."""
    limit = threshold(scores)
    support = scores > limit
    squares = torch.where(support, scores.square() - limit.square(), 0.0).sum(dim=1)
    return (squares / 2 + 0.5 - scores.gather(1, labels[:, None]).squeeze(1)).mean()
