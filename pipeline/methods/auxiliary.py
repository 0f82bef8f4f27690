"""What methods have in common whose layers learn through auxiliary nets.

Local modules are contiguous layers of a net. Each but the last has a small net of its own behind it, and learns with it
by backpropagation; nothing crosses from one module to the next. The last one learns by the cross-entropy of the net's
own classifier. Deep supervision is the same without the cut: the losses' sum teaches the whole net.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError, shortened
from pipeline.methods.base import Activations, MethodConfig, ModelInfo, Rule, StepContext
from pipeline.nets.base import Layer, NetConfig, Shape
from pipeline.nets.chain import LocalModule, ModularNet, even_sizes
from pipeline.nets.featuremaps import FeatureMapLayer
from pipeline.nets.sizes import without_values
from pipeline.nets.whole import WholeLayer, WholeNet

SCORES = "scores"
"""Scores (N, Z) of a module's classifier, among its outputs."""


@dataclass(frozen=True, kw_only=True)
class AuxiliaryMethod(MethodConfig):
    """What the settings of methods with auxiliary nets have in common."""

    deep_supervision: bool = field(default=False, metadata={"flag": None})
    """The same net and auxiliary nets by backpropagation: modules pass gradients on. `baseline` bp-deep sets it."""

    @abstractmethod
    def module_sizes(self, net: NetConfig) -> tuple[int, ...]:
        """Layers of each module. Raises UserError where the net has too few."""

    @abstractmethod
    def build_rule(self, index: int, module: LocalModule, model_info: ModelInfo) -> AuxiliaryRule:
        """The rule of module ``index``, which is not the last of the ``model_info.num_layers``."""

    def adapt(self, net: NetConfig) -> NetConfig:
        modules = ModularNet(net=net, sizes=self.module_sizes(net))
        return WholeNet(net=modules, label="BP, deeply supervised,") if self.deep_supervision else modules

    def predicts(self) -> bool:
        return True

    def build(self, index: int, layer: Layer, model_info: ModelInfo) -> Rule:
        if not self.deep_supervision:
            assert isinstance(layer, LocalModule), "adapt() groups the net's layers"
            return self._rule(index, layer, model_info, model_info.num_layers)
        assert isinstance(layer, WholeLayer), "adapt() makes the net one layer"
        modules = cast("list[LocalModule]", layer.inner)
        return DeeplySupervisedRule(
            [self._rule(number, module, model_info, len(modules)) for number, module in enumerate(modules)]
        )

    def _rule(self, index: int, module: LocalModule, model_info: ModelInfo, num_modules: int) -> AuxiliaryRule:
        if index == num_modules - 1:
            return ClassifierRule(module, model_info)
        return self.build_rule(index, module, replace(model_info, num_layers=num_modules))


@dataclass(frozen=True, kw_only=True)
class GroupingMethod(AuxiliaryMethod):
    """A method whose modules are as large as one likes."""

    modules: int | Literal["all"] = "all"
    """Local modules K that the net's layers form, neighbours together and as evenly as can be. Within a module there is
    backpropagation. all: every layer is one."""

    def check(self) -> None:
        if self.modules != "all" and self.modules < 2:
            raise UserError(
                f"`modules` {shortened(self.modules)}: must be at least 2, or all. "
                "One module is backpropagation: use `baseline` bp."
            )

    def module_sizes(self, net: NetConfig) -> tuple[int, ...]:
        modules = net.num_layers if self.modules == "all" else self.modules
        if modules > net.num_layers > 0:
            raise UserError(
                f"`modules` {shortened(modules)}: {net.describe()} has {net.num_layers} layers, and a module has at "
                f"least one. Give at most `modules` {net.num_layers}, or all."
            )
        return even_sizes(net.num_layers, max(modules, 1))


class AuxiliaryRule(Rule):
    """One local module: cross-entropy of its auxiliary net's scores, unless a method has another loss.

    Args:
        auxiliary: from the module's activations to scores (N, Z).
    """

    def __init__(self, auxiliary: nn.Module) -> None:
        super().__init__()
        self.auxiliary = auxiliary

    def forward(self, layer: Layer, activations: Activations, context: StepContext) -> Activations:
        x = layer(activations["x"])
        return {"x": x} if context.where.for_readouts else {"x": x, **self.behind(layer, x)}

    def behind(self, layer: Layer, x: Tensor) -> Activations:
        """What the auxiliary net makes of the module's activations."""
        return {SCORES: self.auxiliary(x)}

    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        return F.cross_entropy(outputs[SCORES].float(), context.labels)

    def onward(self, outputs: Activations) -> Activations:
        """What the next module takes of the outputs, gradients included."""
        return {"x": outputs["x"]}

    def outputs_to_send(self, layer: Layer, outputs: Activations, context: StepContext) -> Activations:
        return {name: tensor.detach().contiguous() for name, tensor in self.onward(outputs).items()}

    def scores(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor | None:
        return outputs[SCORES].float() if SCORES in outputs else None


class ClassifierRule(AuxiliaryRule):
    """The last module: cross-entropy of the net's own classifier, a linear map of what a readout would see."""

    def __init__(self, module: LocalModule, model_info: ModelInfo) -> None:
        super().__init__(nn.Linear(module.readout_width, model_info.num_classes))

    def behind(self, layer: Layer, x: Tensor) -> Activations:
        return {SCORES: self.auxiliary(layer.readout_input(x))}


class DeeplySupervisedRule(Rule):
    """The whole net: the sum of all modules' losses, whose gradients flow through all modules (Lee et al. 2015)."""

    def __init__(self, rules: Sequence[AuxiliaryRule]) -> None:
        super().__init__()
        self.rules = nn.ModuleList(rules)

    def make_inputs(self, images: Tensor, context: StepContext) -> Activations:
        return self._parts[0].make_inputs(images, context)

    def forward(self, layer: Layer, activations: Activations, context: StepContext) -> Activations:
        """Every module's outputs, as ``3/scores``; the last one's ``x`` besides."""
        assert isinstance(layer, WholeLayer)
        outputs: Activations = {}
        for number, (rule, module) in enumerate(zip(self._parts, layer.inner, strict=True)):
            made = rule.forward(module, activations, context)
            outputs |= {f"{number}/{name}": tensor for name, tensor in made.items()}
            activations = rule.onward(made)
        return {**outputs, "x": made["x"]}

    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        assert isinstance(layer, WholeLayer)
        losses = [
            rule.loss(module, _of(number, outputs), context)
            for number, (rule, module) in enumerate(zip(self._parts, layer.inner, strict=True))
        ]
        return torch.stack(losses).sum()

    def scores(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor | None:
        assert isinstance(layer, WholeLayer)
        last = len(self._parts) - 1
        return self._parts[last].scores(layer.inner[last], _of(last, outputs), context)

    @property
    def _parts(self) -> list[AuxiliaryRule]:
        return cast("list[AuxiliaryRule]", list(self.rules))


def _of(number: int, outputs: Activations) -> Activations:
    """One module's outputs by their own names."""
    prefix = f"{number}/"
    return {name.removeprefix(prefix): tensor for name, tensor in outputs.items() if name.startswith(prefix)}


def check_feature_maps(net: NetConfig, shape: Shape, sizes: Sequence[int], *, why: str) -> None:
    """Refuses a net one of whose modules, the last one excepted, does not end with feature maps.

    Raises:
        UserError: says ``why`` they are needed.
    """
    layers, end = without_values(net, shape), 0
    for number, size in enumerate(sizes[:-1], 1):
        end += size
        if not isinstance(layers[end - 1], FeatureMapLayer):
            raise UserError(
                f"{net.describe()}: {why}, and module {number} of {len(sizes)} does not end with feature maps. "
                "Train a net of convolutions (ResNet, VGG8b, conv)."
            )
