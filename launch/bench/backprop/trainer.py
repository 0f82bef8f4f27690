"""What a rank does in a step, whichever way its net is trained.

All augment in the rank's own process, compute in the run's precision and update with the run's optimizer. Time is
accounted for as the run's own stages do; what a rank spends on other ranks, waiting for them included, is
``TimeCategory.SYNC``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from launch.bench.backprop.batches import Portion
from launch.bench.backprop.job import Job
from launch.bench.backprop.part import Part
from pipeline.data.augment import Augment
from pipeline.layers.optimizer import layer_optimizer
from pipeline.layers.state import State
from pipeline.telemetry.clock import Clock
from pipeline.telemetry.steps import BusyMeter


class Trainer(ABC):
    """A rank's model, optimizer and step.

    Attributes:
        clock: accounts for the time of steps.
        bytes_per_step: sent to other devices in a step.
    """

    def __init__(self, job: Job, rank: int) -> None:
        self.job, self.rank, self.device = job, rank, job.device(rank)
        self.clock = Clock()
        self.busy = BusyMeter(self.clock, self.device)
        self.bytes_per_step = 0
        seed = job.spec.settings.train.seed
        self._augment = Augment(job.spec.augment, seed=seed, device=self.device)

    @abstractmethod
    def step(self, portion: Portion) -> Tensor | None:
        """One update. Returns the loss () of the rank's images; None where another rank has it."""

    @abstractmethod
    def weights(self) -> State:
        """Those that this rank speaks for, on the CPU, named as ``LocalLayer.weights`` names them."""

    def devices(self) -> list[torch.device]:
        """What the rank computes on."""
        return [self.device]

    def _view(self, portion: Portion) -> Tensor:
        """Augmented images (n, C, H, W) float32 on the device."""
        assert portion.images is not None, "this rank sees images"
        where, images = portion.where, self._sent(portion.images)
        return self._augment.views(images, epoch=where.epoch, position=where.position, num_views=1)

    def _labels(self, portion: Portion) -> Tensor:
        assert portion.labels is not None, "this rank sees labels"
        return self._sent(portion.labels)

    def _sent(self, tensor: Tensor) -> Tensor:
        """On the device, without waiting for it: only pinned memory is copied beside a GPU's work."""
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor


class PartTrainer(Trainer):
    """A rank with a part of the net, or all of it, and an optimizer of its own."""

    def __init__(self, job: Job, rank: int, how: Literal["on", "graphs"] | None) -> None:
        super().__init__(job, rank)
        self.part = Part(job, rank, how)
        self._train = job.spec.settings.train
        self.optimizer = layer_optimizer(job.spec.settings, 0, list(self.part.parameters()))

    def weights(self) -> State:
        return self.part.state()

    def _prepare(self, portion: Portion) -> None:
        self.part.draw_anew(portion.where)
        for group in self.optimizer.param_groups:
            group["lr"] = self._train.lr * self._train.lr_factor(portion.where.epoch)

    def _update(self) -> None:
        self.optimizer.step()
        # DDP then puts each gradient into its bucket by one operation; one that is kept it zeroes, adds to and divides.
        self.optimizer.zero_grad(set_to_none=True)


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Of all of them together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
