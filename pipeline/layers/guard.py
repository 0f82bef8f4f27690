"""The guard of an optimizer against losses that are no number."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.errors import NonFiniteLossError


class Guard:
    """Keeps an optimizer from an update whose loss is no number.

    Reading a loss is free on a CPU and stalls a GPU. There the losses are looked at now and then, and until then a
    flag, which never falls, keeps a fused optimizer from applying an update that is no number. With another optimizer
    every loss is looked at.

    Args:
        index: the layer's.
        device: where a flag decides; None: the host looks at every loss.

    Attributes:
        flag: float32 (), 1 from the first loss on that is no number; None where the host looks.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, index: int, *, readout: bool = False, device: torch.device | None = None
    ) -> None:
        self._index, self._readout = index, readout
        self.flag: Tensor | None = None
        if device is not None and all(group.get("fused") for group in optimizer.param_groups):
            self.flag = torch.zeros((), device=device)
            optimizer.found_inf = self.flag  # type: ignore[attr-defined]  # what GradScaler tells it, too

    @torch.no_grad()
    def see(self, loss: Tensor) -> None:
        """Before the update.

        Raises:
            NonFiniteLossError: the host looks, and the loss is no number.
        """
        if self.flag is not None:
            torch.maximum(self.flag, (~torch.isfinite(loss)).float(), out=self.flag)
        elif not torch.isfinite(loss):
            raise NonFiniteLossError(self._index, loss.item(), readout=self._readout)


def running_statistics(*modules: nn.Module) -> list[Tensor]:
    """Batch norm's means and variances, which a batch that is no number would spoil for good."""
    norms = [
        part for module in modules for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)
    ]
    kept = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var)]
    return [tensor for tensor in kept if tensor is not None]
