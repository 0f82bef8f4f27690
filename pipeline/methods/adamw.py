"""AdamW (Loshchilov & Hutter 2019), torch's own, without its compiler."""

from __future__ import annotations

import inspect

import torch

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
