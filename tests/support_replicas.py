"""torch.nn.DataParallel on a CPU: its own replicas, scattered, run in threads and gathered as on several GPUs.

``DataParallel`` itself does nothing without a GPU. Here torch's own ``replicate`` makes the replicas, and only what
moves bytes between GPUs is replaced: a replica's parameters are copies that hang on the original's by a gradient.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel

_REPLICATE = importlib.import_module("torch.nn.parallel.replicate")  # the package has a function of the same name

M = TypeVar("M", bound=nn.Module)


class _Broadcast(torch.autograd.Function):
    """As torch.nn.parallel._functions.Broadcast: copies of every tensor, one for each replica; gradients are summed."""

    @staticmethod
    def forward(ctx: Any, num_replicas: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.num_tensors = len(tensors)
        copies = tuple(tensor.clone() for _ in range(num_replicas) for tensor in tensors)
        fixed = [not tensor.requires_grad for tensor in tensors] * num_replicas
        ctx.mark_non_differentiable(*(copy for copy, is_fixed in zip(copies, fixed, strict=True) if is_fixed))
        return copies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own = [gradients[index :: ctx.num_tensors] for index in range(ctx.num_tensors)]
        return None, *(torch.stack(of_one).sum(dim=0) for of_one in own)


def _broadcast(tensors: Sequence[Tensor], devices: Sequence[int], detach: bool = False) -> list[list[Tensor]]:
    if not tensors:
        return []
    if detach:  # buffers: the first replica's are the original's, where running statistics are to stay
        return [[tensor if not place else tensor.clone() for tensor in tensors] for place in range(len(devices))]
    copies = _Broadcast.apply(len(devices), *tensors)  # type: ignore[no-untyped-call]
    return [list(copies[first : first + len(tensors)]) for first in range(0, len(copies), len(tensors))]


def replicas_of(module: M, count: int) -> list[M]:
    """What DataParallel makes of a module in every step, for so many devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_REPLICATE, "_get_device_index", lambda index, optional=False: index)
        patch.setattr(_REPLICATE, "_broadcast_coalesced_reshape", _broadcast)
        replicas: list[M] = _REPLICATE.replicate(module, range(count))
    return replicas


@contextmanager
def out_of_reach(module: nn.Module) -> Iterator[None]:
    """A module's own parameters are no numbers meanwhile: on another GPU a replica could not use them."""
    kept = [(parameter, parameter.data) for parameter in module.parameters()]
    for parameter, values in kept:
        parameter.data = torch.full_like(values, torch.nan)
    try:
        yield
    finally:
        for parameter, values in kept:
            parameter.data = values


class DataParallelOnCpu(DataParallel[nn.Module]):
    """DataParallel whose devices are all this CPU."""

    def __init__(self, module: nn.Module, device_ids: Sequence[int]) -> None:
        nn.Module.__init__(self)
        self.module, self.device_ids, self.output_device, self.dim = module, list(device_ids), 0, 0
        self.src_device_obj = torch.device("cpu")

    def replicate(self, module: nn.Module, device_ids: Sequence[Any]) -> list[nn.Module]:
        return replicas_of(module, len(device_ids))

    def scatter(self, inputs: tuple[Any, ...], kwargs: dict[str, Any] | None, device_ids: Sequence[Any]) -> Any:
        assert not kwargs, "no row gives any"
        shares = zip(*(tensor.chunk(len(device_ids)) for tensor in inputs), strict=True)
        return tuple(shares), ({},) * len(device_ids)

    def parallel_apply(self, replicas: Sequence[nn.Module], inputs: Sequence[Any], kwargs: Any) -> list[Any]:
        with out_of_reach(self.module), ThreadPoolExecutor(len(replicas)) as pool:  # each in a thread of its own
            running = [pool.submit(replica, *share) for replica, share in zip(replicas, inputs, strict=True)]
            return [one.result() for one in running]

    def gather(self, outputs: Any, output_device: Any) -> Any:
        return torch.cat(outputs)
