"""The whole net on every device: torch.nn.DataParallel and DistributedDataParallel (Li et al. 2020)."""

from __future__ import annotations

from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DataParallel, DistributedDataParallel

from launch.bench.backprop.batches import Portion
from launch.bench.backprop.job import Job, how_compiled
from launch.bench.backprop.trainer import PartTrainer, num_bytes
from launch.bench.protocol import CannotRunError
from pipeline.layers.state import State
from pipeline.nets import Dropout
from pipeline.telemetry.clock import TimeCategory


class Replicated(PartTrainer):
    """torch.nn.DataParallel: one process copies the net to every GPU in every step and gathers the gradients."""

    def __init__(self, job: Job, rank: int) -> None:
        super().__init__(job, rank, None)  # replicas made anew in every step cannot keep compiled code
        if any(isinstance(module, Dropout) and module.share for module in self.part.modules()):
            raise CannotRunError("dropout draws from one generator, and DataParallel's copies lie on several GPUs.")
        self._module = DataParallel(self.part, device_ids=range(job.num_devices))
        others, weights = job.num_devices - 1, num_bytes(self.part.parameters())
        to_scatter = torch.empty(job.batch_size, *job.spec.shape, device="meta")
        scores = torch.empty(job.batch_size, len(job.spec.classes), device="meta")
        # Every other GPU gets the weights and its images, gives gradients and scores, and gets the scores' gradient.
        shares = num_bytes([to_scatter, scores, scores]) * others // job.num_devices
        self.bytes_per_step = others * (2 * weights + num_bytes(self.part.buffers())) + shares

    def devices(self) -> list[torch.device]:
        return [torch.device("cuda", index) for index in range(self.job.num_devices)]

    def step(self, portion: Portion) -> Tensor:
        self._prepare(portion)
        loss = F.cross_entropy(self._module(self._view(portion)), self._labels(portion))
        loss.backward()
        self._update()
        return loss.detach()


class Distributed(PartTrainer):
    """torch.nn.parallel.DistributedDataParallel: every rank has the whole net and its share of each batch."""

    def __init__(self, job: Job, rank: int) -> None:
        super().__init__(job, rank, how_compiled(job.spec))
        has_buffers = any(True for _ in self.part.buffers())
        self._module = DistributedDataParallel(
            self.part,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            broadcast_buffers=has_buffers,
            gradient_as_bucket_view=True,
            static_graph=True,
        )
        # A ring all-reduce sends n − 1 of n pieces twice: once to be summed, once summed.
        self.bytes_per_step = 2 * (job.num_ranks - 1) * num_bytes(self.part.parameters()) // job.num_ranks
        if has_buffers and rank == 0:
            self.bytes_per_step += (job.num_ranks - 1) * num_bytes(self.part.buffers())
        self._parameters = list(self.part.parameters())
        self._num_due = 0  # gradients that the backward pass still has to give
        self._reducing = ExitStack()
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._count_gradient)

    def step(self, portion: Portion) -> Tensor:
        self._prepare(portion)
        if how_compiled(self.job.spec) == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        with self.busy.step():
            loss = F.cross_entropy(self._module(self._view(portion)), self._labels(portion))
            self._num_due = len(self._parameters)
            with self._reducing:
                loss.backward()
            self._update()
        return loss.detach()

    def _count_gradient(self, parameter: Tensor) -> None:
        """After the last gradient the backward pass only waits until all are reduced."""
        self._num_due -= 1
        if self._num_due == 0:
            self._reducing.enter_context(self.busy.pause())
            self._reducing.enter_context(self.clock.measure(TimeCategory.SYNC))

    def weights(self) -> State:
        return super().weights() if self.rank == 0 else {}  # all ranks have the same
