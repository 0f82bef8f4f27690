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
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.methods.base import METHODS, Activations, MethodConfig, ModelInfo, Rule, StepContext
from pipeline.nets.base import Layer, NetConfig
from pipeline.nets.feedback import FeedbackLinear
from pipeline.nets.whole import WholeLayer, WholeNet

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

    def adapt(self, net: NetConfig) -> WholeNet:
        return WholeNet(net=net, label=self.feedback.upper(), feedback=self.feedback == "fa")

    def predicts(self) -> bool:
        return True

    def build(self, index: int, layer: Layer, model_info: ModelInfo) -> Rule:
        assert isinstance(layer, WholeLayer), "adapt() makes the net one layer"
        if self.feedback in ("dfa", "drtp"):
            return DirectRule(layer, model_info, of_targets=self.feedback == "drtp")
        return EndToEndRule(layer, model_info, feedback=self.feedback == "fa")


class EndToEndRule(Rule):
    """Cross-entropy of a linear classifier on what a readout of the last layer sees.

    Args:
        feedback: fixed random weights take the error from the classifier back to the last layer.
    """

    def __init__(self, layer: WholeLayer, model_info: ModelInfo, *, feedback: bool = False) -> None:
        super().__init__()
        linear = nn.Linear(layer.readout_width, model_info.num_classes)
        self.classifier: nn.Linear | FeedbackLinear = linear
        if feedback:
            again = nn.Linear(layer.readout_width, model_info.num_classes)
            self.classifier = FeedbackLinear(linear, again.weight.detach())

    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        return F.cross_entropy(self.classify(layer, outputs["x"]), context.labels)

    def scores(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor | None:
        return self.classify(layer, outputs["x"])

    def classify(self, layer: Layer, activations: Tensor) -> Tensor:
        """Scores (N, Z) from the last layer's activations."""
        seen = layer.readout_input(activations)
        # In the classifier's precision whatever the layers': a softmax follows. Its weight is asked by name: one of
        # DataParallel's replicas has no parameters, though it has what they are called.
        scores: Tensor = self.classifier(seen.to(self.classifier.weight.dtype))
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
