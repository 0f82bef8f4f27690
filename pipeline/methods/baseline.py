"""What local learning is compared with: backpropagation and its relatives on the same nets.

All four train a linear classifier on the last layer by cross-entropy, and differ in the error δ_l that reaches layer
l's output h_l. With e the error at the scores, softmax − one-hot, and B fixed and random:

bp    δ_l = W^T δ_{l+1}, through the exact derivative of every operation between (Rumelhart et al. 1986)
fa    the same, with B in place of W in every linear layer and convolution (feedback alignment, Lillicrap et al. 2016)
dfa   δ_l = e B_l (direct feedback alignment, Nøkland 2016)
drtp  δ_l = y* B_l with the one-hot target y* (direct random target projection, Frenkel et al. 2021)

Where dfa and drtp go through a layer of several operations, an encoder layer say, that happens by exact derivatives.
drtp's δ never falls to zero: without a norm and at a large learning rate activations grow from step to step.
The net is one piece to these methods, so it is one layer of one stage (``WholeNet``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError, shortened
from pipeline.methods.base import METHODS, Activations, MethodConfig, ModelInfo, Rule, StepContext
from pipeline.nets.base import Layer, NetConfig
from pipeline.nets.feedback import FeedbackLinear
from pipeline.nets.whole import WholeLayer, WholeNet

SEEN = "seen"
"""What a classifier on several layers sees of them, side by side (N, Σ widths)."""

Feedback = Literal["bp", "fa", "dfa", "drtp"]

Baseline = Literal[Feedback, "bp-deep"]
"""What a run can be compared with. bp-deep is made of the method: its own net and auxiliary nets, deeply supervised."""


@METHODS.register
@dataclass(frozen=True, kw_only=True)
class BaselineSettings(MethodConfig):
    """Cross-entropy on a linear classifier behind the whole net."""

    kind: ClassVar[str] = "baseline"
    feedback: Feedback = "bp"
    """How the error reaches the layers. bp: backpropagation. fa: feedback alignment. dfa: direct feedback alignment.
    drtp: direct random target projection."""
    joined: tuple[int, ...] = ()
    """Layers, from 0, that the classifier sees side by side; none: the last one."""
    classifier_norm: bool = False
    """LayerNorm before the classifier."""

    @classmethod
    def like_readout(cls, method: MethodConfig, net: NetConfig, *, norm: bool) -> Self:
        """Backpropagation with a classifier that sees what the last layer's readout does where ``method`` trains."""
        last = net.num_layers - 1
        seen = method.readout_inputs(last, net.num_layers)
        return cls(joined=seen if seen != (last,) else (), classifier_norm=norm)

    def adapt(self, net: NetConfig) -> WholeNet:
        if not set(self.joined) <= set(range(net.num_layers)) or len(set(self.joined)) < len(self.joined):
            given = " ".join(map(shortened, self.joined))
            raise UserError(f"`joined` {given}: layers of {net.describe()}, each once, from 0 to {net.num_layers - 1}.")
        return WholeNet(net=net, label=self.feedback.upper(), feedback=self.feedback == "fa")

    def predicts(self) -> bool:
        return True

    def build(self, index: int, layer: Layer, model_info: ModelInfo) -> Rule:
        assert isinstance(layer, WholeLayer), "adapt() makes the net one layer"
        if self.feedback in ("dfa", "drtp"):
            return DirectRule(layer, model_info, of_targets=self.feedback == "drtp")
        return EndToEndRule(
            layer, model_info, feedback=self.feedback == "fa", joined=self.joined, norm=self.classifier_norm
        )


class EndToEndRule(Rule):
    """Cross-entropy of a linear classifier on what a readout of the last layer sees, or of several layers side by side.

    Args:
        feedback: fixed random weights take the error from the classifier back to the last layer.
        joined, norm: as ``BaselineSettings`` has them.
    """

    def __init__(
        self,
        layer: WholeLayer,
        model_info: ModelInfo,
        *,
        feedback: bool = False,
        joined: tuple[int, ...] = (),
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.joined = joined
        width = sum(layer.inner[index].readout_width for index in joined) if joined else layer.readout_width
        linear = nn.Linear(width, model_info.num_classes)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.classifier: nn.Linear | FeedbackLinear = linear
        if feedback:
            again = nn.Linear(width, model_info.num_classes)
            self.classifier = FeedbackLinear(linear, again.weight.detach())

    def forward(self, layer: Layer, activations: Activations, context: StepContext) -> Activations:
        if not self.joined:
            return super().forward(layer, activations, context)
        assert isinstance(layer, WholeLayer), "adapt() makes the net one layer"
        x, seen = activations["x"], []
        for index, inner in enumerate(layer.inner):
            x = inner(x)
            if index in self.joined:
                seen.append(inner.readout_input(x))
        return {"x": x, SEEN: torch.cat(seen, dim=1)}

    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        return F.cross_entropy(self._scores(layer, outputs), context.labels)

    def scores(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor | None:
        return self._scores(layer, outputs)

    def _scores(self, layer: Layer, outputs: Activations) -> Tensor:
        return self._classify(outputs[SEEN]) if self.joined else self.classify(layer, outputs["x"])

    def classify(self, layer: Layer, activations: Tensor) -> Tensor:
        """Scores (N, Z) from the last layer's activations."""
        return self._classify(layer.readout_input(activations))

    def _classify(self, seen: Tensor) -> Tensor:
        """Scores (N, Z) from what the classifier sees (N, width)."""
        # In the classifier's precision whatever the layers': a softmax follows. Its weight is asked by name: one of
        # DataParallel's replicas has no parameters, though it has what they are called.
        scores: Tensor = self.classifier(self.norm(seen.to(self.classifier.weight.dtype)))
        return scores


class DirectRule(EndToEndRule):
    """Every layer's error comes straight from the net's output by a fixed random matrix; none from the next layer.

    Matrix B_l is (Z, D_l) for D_l units in layer l's output, uniform in ±1/√D_l (Nøkland 2016). What AdamW makes of a
    layer's gradient hardly depends on its scale.

    Args:
        of_targets: the one-hot targets are projected (DRTP) and not the error at the scores (DFA).
    """

    def __init__(self, layer: WholeLayer, model_info: ModelInfo, *, of_targets: bool) -> None:
        super().__init__(layer, model_info)
        self.of_targets = of_targets
        for index, shape in enumerate(layer.output_shapes):
            bound = 1 / math.sqrt(shape.numel())
            drawn = torch.empty(model_info.num_classes, shape.numel()).uniform_(-bound, bound)
            self.register_buffer(f"feedback_{index}", drawn)

    def forward(self, layer: Layer, activations: Activations, context: StepContext) -> Activations:
        """The output of every inner layer, attached to that layer alone; the last one's is ``x``."""
        assert isinstance(layer, WholeLayer)
        x, outputs = activations["x"], {}
        for index, inner in enumerate(layer.inner):
            x = outputs[f"h{index}"] = inner(x.detach())
        return {**outputs, "x": x}

    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        """The classifier's cross-entropy (). Its gradient is not its own: at h_l it is δ_l, in the batch's mean."""
        assert isinstance(layer, WholeLayer)
        scores, labels = self.classify(layer, outputs["x"].detach()), context.labels
        cross_entropy = F.cross_entropy(scores, labels)
        if not context.where.training:
            return cross_entropy
        targets = F.one_hot(labels, scores.shape[1]).to(scores.dtype)  # (N, Z)
        projected = targets if self.of_targets else scores.detach().softmax(dim=1) - targets
        products = [
            (outputs[f"h{index}"].flatten(1) * (projected @ self.get_buffer(f"feedback_{index}"))).sum()
            for index in range(len(layer.inner))
        ]
        steering = torch.stack(products).sum() / len(labels)
        return cross_entropy + (steering - steering.detach())  # adds 0 to the value, δ_l to the gradient at h_l
