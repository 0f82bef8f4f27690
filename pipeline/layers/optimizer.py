"""The optimizer of one layer's parameters, by the run's settings; and which of them a CUDA graph can hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from pipeline.config.settings import Settings
from pipeline.methods.sgd import SGD


def layer_optimizer(settings: Settings, index: int, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """That of layer ``index``: SGD where the run says so, else what the method has, AdamW as a rule."""
    train = settings.train
    if train.optimizer == "adamw":
        return settings.method.optimizer(index, parameters, lr=train.lr, weight_decay=train.weight_decay)
    return SGD(
        parameters,
        lr=train.lr,
        momentum=train.sgd_momentum,
        nesterov=train.sgd_momentum > 0,
        weight_decay=train.weight_decay,
        fused=True,
    )


def is_capturable(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step of it on a GPU can be captured as a CUDA graph: it is fused, and all that changes in it is in
    tensors there, its learning rate too.

    torch's Adam and AdamW have a setting for that. Its SGD has none: fused, it counts nothing, reads the learning rate
    from a tensor where it is one, and has its momentum in place from the first step on.
    """
    counts_nothing = isinstance(optimizer, torch.optim.SGD)
    return all(group.get("fused") and (counts_nothing or "capturable" in group) for group in optimizer.param_groups)


@contextmanager
def capturable(*optimizers: torch.optim.Optimizer) -> Iterator[None]:
    """Has optimizers that ``is_capturable`` take a step that is captured. Otherwise torch warns of the setting, which
    changes no bit of a fused one."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups if "capturable" in group]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False
