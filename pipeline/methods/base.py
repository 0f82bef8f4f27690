"""What every method answers for one layer: what goes in, its loss, what it passes on, how it predicts.

A layer works on *activations*: named tensors that travel together. Contrastive Forward-Forward has one, that of all
views. A method with more (a right-label and a wrong-label copy, two twin networks) names more.
How to write a method: docs/extending.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import torch
from pydantic import PlainSerializer, PlainValidator
from torch import Tensor, nn

from pipeline.methods.adamw import AdamW
from pipeline.methods.embeddings import EmbeddingSettings, LabelEmbeddings
from pipeline.methods.shared_state import SharedState, TrainingInfo
from pipeline.nets.base import Layer, NetConfig, Shape
from pipeline.registry import Registered, Registry
from pipeline.versions import Versions

Activations = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class BatchPosition:
    """Where in a run a batch is: what random numbers, schedules and versions may depend on.

    Attributes:
        epoch: 0-based.
        step: training steps before this batch, over all epochs.
        position: index of the batch's first sample in the epoch's order.
        training: whether the layers learn from this batch.
        phase_step: training steps of this phase before this batch; as ``step`` where all layers learn at once.
        phase: the layers that learn in this part of the run, of a method that trains some after others; None where all
            layers take part.
        for_readouts: whether readouts learn from this batch and layers are asked for nothing else: no loss, no scores.
    """

    epoch: int = 0
    step: int = 0
    position: int = 0
    training: bool = False
    phase_step: int = 0
    phase: range | None = None
    for_readouts: bool = False


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """What a rule knows of a batch beside its activations.

    Attributes:
        labels: (N,) int64, shared by all views.
        where: its position in the run.
        shared: the version that this layer reads of the state that layers share, such as label embeddings (Z, C_D);
            None for methods without any.
        generator: random numbers of this layer and step, on the layer's device, in ``make_inputs`` others than in
            ``loss``; None outside training. A frozen layer that others learn behind has them too.
    """

    labels: Tensor
    where: BatchPosition
    shared: Tensor | None = None
    generator: torch.Generator | None = None


class Rule(nn.Module, ABC):
    """The learning rule of one layer. Parameters that it has learn with the layer's.

    Attributes:
        num_views: so many augmented copies of each image reach the first layer.
        margin: added to the cosine similarity of two features of one class; None for methods without one.
        per_sample: what ``run`` gives for a sample depends on no other sample, as far as the rule is concerned.
        eager: why a training step cannot be captured once as a CUDA graph and replayed, as a clause: "its loss draws a
            layer at the host". None: it can, as ``forward``, ``loss``, ``outputs_to_send`` and ``contribution`` read
            nothing but tensors that changes from step to step, and draw from ``context.generator`` alone. A rule with
            a ``collect`` or an ``end_epoch`` of its own never can.
    """

    num_views: int = 1
    margin: float | None = None
    per_sample: bool = False
    eager: str | None = None

    def make_inputs(self, images: Tensor, context: StepContext) -> Activations:
        """Activations for the first layer from network input (V·N, channels, H, W), view-major."""
        return {"x": images}

    def forward(self, layer: Layer, activations: Activations, context: StepContext) -> Activations:
        """The layer's outputs, attached to its own parameters only."""
        return {name: layer(tensor) for name, tensor in activations.items()}

    @abstractmethod
    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        """Scalar local loss of the outputs."""

    def outputs_to_send(self, layer: Layer, outputs: Activations, context: StepContext) -> Activations:
        """What the next layer receives: detached, computed before this layer's own update."""
        # Contiguous, as it would be received: another layout may mean other rounding in the next layer.
        return {name: tensor.detach().contiguous() for name, tensor in outputs.items()}

    def collect(self, layer: Layer, outputs: Activations, context: StepContext) -> None:
        """Takes from a training batch what the rule learns beside the gradient of its loss, such as sums.

        Asked for after the layer's update, without a gradient. What is kept for it in buffers that are not persistent
        is in checkpoints, and not in the trained network. A rule that learns so alone has a loss without a gradient.
        """

    def end_epoch(self) -> None:
        """Comes after the last batch of each epoch in which the layer learns, before it is validated.

        Raises:
            RunError: nothing can be made of what was collected.
        """

    def contribution(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        """What the layer contributes to the shared state, as large as that: the gradient of its loss.

        Asked for after the layer's update, of methods whose layers share a state.
        """
        assert context.shared is not None, "asked for only where layers share a state"
        # No gradient: the loss's terms that look at it are switched off.
        return torch.zeros_like(context.shared) if context.shared.grad is None else context.shared.grad

    def features(self, layer: Layer, outputs: Activations) -> Tensor:
        """Pooled features (V·N, C) that analyses see."""
        return layer.pool(outputs["x"])

    def readout_input(self, layer: Layer, outputs: Activations) -> Tensor:
        """What a linear readout of the layer sees (V·N, layer.readout_width)."""
        return layer.readout_input(outputs["x"])

    def scores(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor | None:
        """Scores (N, Z) by which the layer predicts on its own, without a readout; None where the method cannot."""
        return None

    def figures(self, layer: Layer, outputs: Activations, context: StepContext) -> Mapping[str, Tensor]:
        """What else is worth seeing of the layer, by name, each a scalar (): asked for once an evaluation."""
        return {}

    def goodness(self, layer: Layer, outputs: Activations) -> Tensor | None:
        """How good each image with each class's label looks to this layer alone (N, Z), in evaluation; None for methods
        that show nets no labels."""
        return None

    def targets(self, layer: Layer, context: StepContext) -> Tensor | None:
        """Every class's label embedding as this layer sees it (Z, C); None for methods without any."""
        return None

    def compared(self, vectors: Tensor) -> Tensor:
        """A layer's feature vectors (…, C), one for each position, as they are compared with label embeddings."""
        return vectors

    def compare(self, features: Tensor, targets: Tensor) -> Tensor:
        """Similarities (N, M) of what ``compared`` gives, or its mean, (N, C) with ``targets`` (M, C)."""
        return features @ targets.T


class PooledRule(Rule):
    """A rule whose loss sees nothing of a layer but its pooled features. They are an output, named ``pooled``."""

    per_sample = True

    def forward(self, layer: Layer, activations: Activations, context: StepContext) -> Activations:
        x, pooled = layer.forward_pooled(activations["x"])
        return {"x": x, "pooled": pooled}

    def outputs_to_send(self, layer: Layer, outputs: Activations, context: StepContext) -> Activations:
        return {"x": outputs["x"].contiguous()}

    def features(self, layer: Layer, outputs: Activations) -> Tensor:
        return outputs["pooled"]


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a rule may build itself from beside its layer.

    Attributes:
        mean, std: of each channel, by which images were normalised; as they stand here, they are in [0, 1].
    """

    num_layers: int
    num_classes: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, kw_only=True)
class MethodConfig(ABC, Registered):
    """A method's settings: enough to make the rule of any one layer."""

    figures: ClassVar[tuple[str, ...]] = ()
    """Names of what ``Rule.figures`` gives."""
    online_readouts: ClassVar[bool] = True
    """Whether readouts can learn along with the layers: what they see is among the outputs in training."""
    needs_labels: ClassVar[bool] = True
    """Whether layers learn from labels. Else images without classes do, and layers may go without any prediction."""
    chains: ClassVar[bool] = True
    """Whether in evaluation a layer passes on what its net makes of what it gets, no more and no less."""
    smallest_batch: ClassVar[int] = 1
    """Images that a training batch has at least."""

    def check(self) -> None:
        """Raises UserError where a value is out of range."""

    def check_data(self, net: NetConfig, shape: Shape, num_classes: int) -> None:
        """Raises UserError where images of ``shape``, or so many classes, cannot be learned by this method and net."""

    def resolve(self, features: Sequence[int]) -> Self:
        """These settings with every "auto" replaced, for layers with features so long. Raises UserError."""
        return self

    def adapt(self, net: NetConfig) -> NetConfig:
        """The net whose layers learn by this method: the one that was asked for, or one made of it.

        Raises:
            UserError: the method cannot train such a net.
        """
        return net

    def leaves_plain(self, net: NetConfig) -> bool:
        """Whether what it trains is this net as it is, so that backpropagation can go on with the layers."""
        return self.chains and self.adapt(net) == net

    def label_embeddings(self) -> EmbeddingSettings | None:
        """The label embeddings that features are compared with; None where there are none."""
        return None

    def shared_versions(self, num_layers: int, steps_per_epoch: int) -> Versions | None:
        """The versions of the state that layers share, such as label embeddings; None: none."""
        embeddings = self.label_embeddings()
        if embeddings is None or not embeddings.shared:
            return None
        return embeddings.versions(num_layers, steps_per_epoch)

    def shared_state(self, info: TrainingInfo) -> SharedState:
        """That state as it begins, with the same versions. Asked for once in a run, by whoever keeps it."""
        embeddings = self.label_embeddings()
        assert embeddings is not None, "a method that shares another state says so here"
        return LabelEmbeddings(embeddings, info)

    def predicts(self) -> bool:
        """Whether layers predict on their own (``Rule.scores``), without a readout."""
        return False

    def optimizer(
        self, index: int, parameters: Sequence[nn.Parameter], *, lr: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """The optimizer of layer ``index``'s parameters, net and rule: AdamW (Loshchilov & Hutter 2019) unless it says
        otherwise. It may give the layer a learning rate of its own in place of the run's."""
        return AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)

    def lr_factor(self, index: int, where: BatchPosition) -> float:
        """What layer ``index``'s learning rate is multiplied by at a training step, beside the run's milestones."""
        return 1.0

    def phases(self, num_layers: int) -> Sequence[range]:
        """The layers that learn at the same time, phase after phase: all at once unless it says otherwise.

        Phases are neighbouring layers in order, such as ``[range(0, 1), range(1, 2), range(2, 3)]``: layer after layer.
        Each lasts as many epochs as the run's setting says and ends with the weights of its best epoch. In a later
        phase these layers are frozen; those of later phases see nothing yet.
        """
        return [range(num_layers)]

    def readout_inputs(self, index: int, num_layers: int) -> tuple[int, ...]:
        """The layers whose features the readout of layer ``index`` sees side by side, in this order: itself, and any
        before it."""
        return (index,)

    @abstractmethod
    def build(self, index: int, layer: Layer, model_info: ModelInfo) -> Rule:
        """The rule of layer ``index`` (0-based); the caller seeds its initial parameters."""


METHODS: Registry[MethodConfig] = Registry("method")
"""Every method by its kind."""

MethodField = Annotated[MethodConfig, PlainValidator(METHODS.load), PlainSerializer(METHODS.dump)]
"""A field that holds any method and is saved with its kind."""
