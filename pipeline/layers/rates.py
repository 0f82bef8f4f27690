"""Learning rates of an optimizer, set anew in every step: as numbers, or in tensors on a GPU."""

from __future__ import annotations

import torch


class Rates:
    """The learning rate of each of an optimizer's groups of parameters, as it was made, times what a step asks for.

    Args:
        device: where tensors, float32, hold the rates; None: numbers do. The optimizer reads a tensor when it updates
            on the device, so that a CUDA graph of the update need not be captured anew for another rate.

    Attributes:
        now: the rates of the last step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device | None = None) -> None:
        self._optimizer = optimizer
        self._first = [float(group["lr"]) for group in optimizer.param_groups]
        self.now = self._first
        self._held = [torch.tensor(rate, device=device) for rate in self._first] if device is not None else None
        self.hold()

    def set(self, *factors: float) -> None:
        """Multiplies the first rates by these, one after the other."""
        rates = self._first
        for factor in factors:
            rates = [rate * factor for rate in rates]
        if self._held is not None:
            if rates != self.now:
                for held, rate in zip(self._held, rates, strict=True):
                    held.fill_(rate)
        else:
            for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        self.now = rates

    def hold(self) -> None:
        """Gives the optimizer the tensors that hold its rates, if any do: loading its state replaces them by copies."""
        if self._held is not None:
            for group, held in zip(self._optimizer.param_groups, self._held, strict=True):
                group["lr"] = held
