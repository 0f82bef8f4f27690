"""AdamW (Loshchilov & Hutter 2019), torch's own, without its compiler; and any optimizer as it was saved."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_TORCHS = torch.optim.AdamW


class AdamW(_TORCHS):
    """Computes what ``torch.optim.AdamW`` does, in the same code.

    That one imports torch's compiler when it is made, only to tell it to keep out of its methods: three seconds of each
    process of a run. Here they come as they are below that. Nothing compiles a step of an optimizer in this project.
    """

    add_param_group = inspect.unwrap(_TORCHS.add_param_group)
    state_dict = inspect.unwrap(_TORCHS.state_dict)
    load_state_dict = inspect.unwrap(_TORCHS.load_state_dict)
    zero_grad = inspect.unwrap(_TORCHS.zero_grad)
    step = torch.no_grad()(inspect.unwrap(_TORCHS.step))


def is_capturable(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step of it on a GPU can be captured as a CUDA graph: it is fused, and all that changes in it is in
    tensors there, its learning rate too."""
    return all(group.get("fused") and "capturable" in group for group in optimizer.param_groups)


@contextmanager
def capturable(*optimizers: torch.optim.Optimizer) -> Iterator[None]:
    """Has optimizers that ``is_capturable`` take a step that is captured. Otherwise torch warns of the setting, which
    changes no bit of a fused one."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    state: Mapping[Tensor, Mapping[str, Any]],
    groups: list[dict[str, Any]] | None = None,
) -> None:
    """Gives an optimizer the state that it had, as its own ``load_state_dict`` brings it to device and dtype.

    Args:
        state: what it noted of each parameter, by the parameter. One of which it had noted nothing is left out.
        groups: settings of its groups of parameters that may have changed since it was made.
    """
    saved = optimizer.state_dict()
    numbers = {
        id(parameter): number
        for group, names in zip(optimizer.param_groups, saved["param_groups"], strict=True)
        for parameter, number in zip(group["params"], names["params"], strict=True)
    }
    saved["state"] = {numbers[id(parameter)]: dict(fields) for parameter, fields in state.items() if fields}
    for group, changed in zip(saved["param_groups"], groups or [], strict=False):
        group.update(changed)
    optimizer.load_state_dict(saved)
