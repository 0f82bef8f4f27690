"""SGD with Nesterov's momentum, torch's own, without its compiler (as ``pipeline.methods.adamw``)."""

from __future__ import annotations

import inspect

import torch

_TORCHS = torch.optim.SGD


class SGD(_TORCHS):
    """Computes what ``torch.optim.SGD`` does, in the same code."""

    add_param_group = inspect.unwrap(_TORCHS.add_param_group)
    state_dict = inspect.unwrap(_TORCHS.state_dict)
    load_state_dict = inspect.unwrap(_TORCHS.load_state_dict)
    zero_grad = inspect.unwrap(_TORCHS.zero_grad)
    step = torch.no_grad()(inspect.unwrap(_TORCHS.step))
