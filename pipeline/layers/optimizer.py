"""The optimizer of one layer's parameters, by the run's settings."""

from __future__ import annotations

from collections.abc import Sequence

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
