"""Linear layers and convolutions that send the error back through fixed random weights (Lillicrap et al. 2016).

Forward they are what they replace, and their own weights get the exact gradient of what reaches them. Only what they
pass back differs: δ_in = B^T δ_out, where the exact one would be W^T δ_out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input, conv2d_weight


def give_feedback(module: nn.Module, twin: nn.Module) -> None:
    """Replaces every linear layer and convolution within a module by one with feedback weights.

    Args:
        twin: the same module, initialised anew: its weights become the feedback weights, so that they are of the
            scale that the net chose for its own.
    """
    others = dict(twin.named_children())
    for name, child in module.named_children():
        other = others[name]
        if isinstance(child, nn.Linear) and isinstance(other, nn.Linear):
            setattr(module, name, FeedbackLinear(child, other.weight.detach()))
        elif isinstance(child, nn.Conv2d) and isinstance(other, nn.Conv2d):
            setattr(module, name, FeedbackConv2d(child, other.weight.detach()))
        else:
            give_feedback(child, other)


class FeedbackLinear(nn.Module):
    """A linear layer with its own parameters and fixed feedback weights, shaped as its weights."""

    feedback: Tensor

    def __init__(self, linear: nn.Linear, feedback: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("feedback", feedback)

    def forward(self, x: Tensor) -> Tensor:
        x, weight, bias, feedback = _as_autocast(x, self.weight, self.bias, self.feedback)
        result: Tensor = _Linear.apply(x, weight, bias, feedback)  # type: ignore[no-untyped-call]
        return result


class FeedbackConv2d(nn.Module):
    """A convolution with its own parameters and fixed feedback weights, shaped as its weights."""

    feedback: Tensor

    def __init__(self, conv: nn.Conv2d, feedback: Tensor) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str), "nets give their padding in pixels"
        self.weight, self.bias = conv.weight, conv.bias
        self.register_buffer("feedback", feedback)
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.padding_mode = conv.padding_mode

    def forward(self, x: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            rows, columns = padding
            x = F.pad(x, (columns, columns, rows, rows), mode=self.padding_mode)
            padding = (0, 0)
        x, weight, bias, feedback = _as_autocast(x, self.weight, self.bias, self.feedback)
        how = (self.stride, padding, self.dilation, self.groups)
        result: Tensor = _Conv2d.apply(x, weight, bias, feedback, how)  # type: ignore[no-untyped-call]
        return result


class _Linear(torch.autograd.Function):
    """F.linear(x, weight, bias), whose gradient at x is the one that ``feedback`` gives in place of ``weight``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, feedback: Tensor) -> Tensor:
        ctx.save_for_backward(x, feedback)
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        x, feedback = ctx.saved_tensors
        for_x, for_weight, for_bias, _ = ctx.needs_input_grad
        rows = error.flatten(0, -2)  # (everything else, outputs)
        return (
            error @ feedback if for_x else None,
            rows.T @ x.flatten(0, -2) if for_weight else None,
            rows.sum(dim=0) if for_bias else None,
            None,
        )


class _Conv2d(torch.autograd.Function):
    """F.conv2d(x, weight, bias, *how), whose gradient at x is the one of ``feedback`` in place of ``weight``.

    ``how`` is stride, padding, dilation and groups.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, feedback: Tensor, how: tuple[Any, ...]
    ) -> Tensor:
        ctx.save_for_backward(x, feedback)
        ctx.how = how
        return F.conv2d(x, weight, bias, *how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        x, feedback = ctx.saved_tensors
        for_x, for_weight, for_bias, _, _ = ctx.needs_input_grad
        return (
            conv2d_input(x.shape, feedback, error, *ctx.how) if for_x else None,
            conv2d_weight(x, feedback.shape, error, *ctx.how) if for_weight else None,
            error.sum(dim=(0, 2, 3)) if for_bias else None,
            None,
            None,
        )


def _as_autocast(x: Tensor, weight: Tensor, bias: Tensor | None, feedback: Tensor) -> list[Any]:
    """The arguments in autocast's precision where it is on: it does not reach into the functions' backward pass."""
    arguments = (x, weight, bias, feedback)
    if not torch.is_autocast_enabled(x.device.type):
        return list(arguments)
    dtype = torch.get_autocast_dtype(x.device.type)
    return [None if tensor is None else tensor.to(dtype) for tensor in arguments]
