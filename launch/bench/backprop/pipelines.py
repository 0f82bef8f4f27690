"""The net cut into stages: GPipe (Huang et al. 2019) and 1F1B of torch.distributed.pipelining.

1F1B is PipeDream's order (Harlap et al. 2018) with the pipeline drained before each update (Narayanan et al. 2021).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from launch.bench.backprop.batches import Portion
from launch.bench.backprop.job import Job
from launch.bench.backprop.trainer import PartTrainer, num_bytes
from pipeline.telemetry.clock import TimeCategory
from pipeline.telemetry.steps import BusyMeter


class Pipelined(PartTrainer):
    """A stage of torch.distributed.pipelining. Steps do not overlap: the pipeline drains before each update."""

    def __init__(self, job: Job, rank: int) -> None:
        # A CUDA graph's outputs lie where its next replay writes, and a stage keeps those of several microbatches.
        super().__init__(job, rank, "on" if job.spec.compiles else None)
        size = job.batch_size // job.microbatches
        images = torch.empty(1, *job.spec.shape, device="meta")
        scores = torch.empty(1, len(job.spec.classes), device="meta")
        ends = [images, *self.part.cuts, scores]
        taken, given = (
            torch.empty(size, *end.shape[1:], dtype=end.dtype, device="meta", requires_grad=end is not images)
            for end in ends[rank : rank + 2]
        )
        stage = _MeasuredStage(self.part, rank, job.num_ranks, self.device, taken, given, busy=self.busy)
        schedule = ScheduleGPipe if job.way == "gpipe" else Schedule1F1B
        self._schedule = schedule(stage, job.microbatches, loss_fn=self._loss)
        self._first, self._last = rank == 0, rank == job.num_ranks - 1
        # Activations go on, and their gradients come back in the same shape and precision.
        sent = ([] if self._last else [given]) + ([] if self._first else [taken])
        self.bytes_per_step = job.microbatches * num_bytes(sent)

    def step(self, portion: Portion) -> Tensor | None:
        self._prepare(portion)
        losses: list[Tensor] = []
        with self.busy.step():
            images = [self._view(portion)] if self._first else []
        with self.clock.measure(TimeCategory.SYNC):  # all but the stage's own passes, which count as busy
            if self._last:
                self._schedule.step(*images, target=self._labels(portion), losses=losses)
            else:
                self._schedule.step(*images)
        with self.busy.step():
            self._update()
        return torch.stack(losses).detach().mean() if self._last else None

    def _loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        with self.busy.step():
            return F.cross_entropy(scores, labels)


class _MeasuredStage(PipelineStage):
    """A stage that accounts for its own forward and backward passes."""

    def __init__(
        self,
        part: nn.Module,
        index: int,
        count: int,
        device: torch.device,
        taken: Tensor,
        given: Tensor,
        *,
        busy: BusyMeter,
    ) -> None:
        # Shapes are given, so that the stages need not run the net on undefined values to find them.
        super().__init__(part, index, count, device, input_args=taken, output_args=given)
        self._busy = busy

    def forward_one_chunk(self, *arguments: Any, **options: Any) -> Any:
        with self._busy.step():
            return super().forward_one_chunk(*arguments, **options)

    def backward_one_chunk(self, *arguments: Any, **options: Any) -> Any:
        with self._busy.step():
            return super().backward_one_chunk(*arguments, **options)
