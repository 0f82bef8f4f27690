"""What a layer knows, as flat tensors by name: the weights that a run keeps, and snapshots for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.methods.adamw import load_optimizer

_OF_A_DEVICE = ("fused", "foreach", "capturable", "differentiable")  # settings of an optimizer that change no number

State = dict[str, Tensor]
"""Flat names → tensors, such as ``layers.2.net.qkv.weight`` or ``layers.2.optimizer.qkv.weight.exp_avg``."""


@dataclass
class Snapshot:
    """A layer, or what a stage keeps of it, between two batches.

    Attributes:
        tensors: by name. They change with the layer's next update unless they are copied before.
        values: what is no tensor, as JSON has it.
    """

    tensors: State = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def take_snapshot(
    modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer], *, collects: str
) -> Snapshot:
    """Modules and their optimizers, by the names that they are given here. The tensors are their own.

    Args:
        collects: the module whose buffers that are not persistent belong to it as well.
    """
    tensors: State = {}
    for part, module in modules.items():
        tensors |= {f"{part}.{name}": value.detach() for name, value in module.state_dict().items()}
    trained = modules[collects].state_dict().keys()
    tensors |= {f"collected.{name}": value for name, value in modules[collects].named_buffers() if name not in trained}
    values: dict[str, Any] = {}
    for part, optimizer in optimizers.items():
        noted, groups = _noted(optimizer, _named(modules))
        tensors |= {f"{part}.{name}": value for name, value in noted.items() if isinstance(value, Tensor)}
        values[part] = {
            "state": {name: value for name, value in noted.items() if not isinstance(value, Tensor)},
            "groups": groups,
        }
    return Snapshot(tensors, values)


def load_snapshot(
    snapshot: Snapshot,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    *,
    collects: str,
    device: torch.device,
) -> None:
    """Gives modules and optimizers on ``device`` what ``take_snapshot`` found, on whatever device.

    Raises:
        KeyError, RuntimeError, ValueError: it is not of such modules.
    """
    for part, module in modules.items():
        module.load_state_dict(below(snapshot.tensors, f"{part}."))
    for name, value in below(snapshot.tensors, "collected.").items():
        owner, _, buffer = name.rpartition(".")
        setattr(modules[collects].get_submodule(owner), buffer, value.to(device))
    named = _named(modules)
    for part, optimizer in optimizers.items():
        values = snapshot.values[part]
        state: dict[Tensor, dict[str, Any]] = {}
        for name, value in {**below(snapshot.tensors, f"{part}."), **values["state"]}.items():
            parameter, _, of_it = name.rpartition(".")
            state.setdefault(named[parameter], {})[of_it] = value
        load_optimizer(optimizer, state, values["groups"])


def _named(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Every parameter by its name in a snapshot."""
    return {f"{part}.{name}": value for part, module in modules.items() for name, value in module.named_parameters()}


def _noted(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What an optimizer has noted of each parameter, by its name and the field's; and its groups' settings."""
    names = {id(parameter): name for name, parameter in named.items()}
    noted = {
        f"{names[id(parameter)]}.{name}": value
        for parameter, fields in optimizer.state.items()
        for name, value in fields.items()
    }
    groups = [
        {name: value for name, value in group.items() if isinstance(value, (int, float)) and name not in _OF_A_DEVICE}
        for group in optimizer.param_groups
    ]
    return noted, groups


def copies(module: nn.Module, prefix: str) -> State:
    """Copies of a module's tensors on the CPU, whose names begin so."""
    return {f"{prefix}{name}": copied(value) for name, value in module.state_dict().items()}


def optimizer_copies(optimizer: torch.optim.Optimizer, module: nn.Module, prefix: str) -> State:
    """Copies of what an optimizer has noted of a module's parameters, whose names begin so."""
    return {
        f"{prefix}{name}.{field}": copied(value)
        for name, parameter in module.named_parameters()
        for field, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)  # SGD without momentum notes that there is none
    }


def copied(tensor: Tensor) -> Tensor:
    """A copy on the CPU."""
    return tensor.detach().cpu().clone() if tensor.is_cuda else tensor.detach().clone()


def below(state: Mapping[str, Tensor], prefix: str) -> State:
    """What names that begin so stand for, without that beginning."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def is_finite(state: State) -> bool:
    """Whether every number in it is one: a gradient can spoil weights a step before a loss shows it."""
    return all(bool(torch.isfinite(value).all()) for value in state.values())
