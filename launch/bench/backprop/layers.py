"""The net's layers one after the other on one device: how long each takes of a step, as a pipeline works on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from launch.bench.backprop.batches import Portion
from launch.bench.backprop.job import Job, how_compiled
from launch.bench.backprop.part import Part
from launch.bench.backprop.trainer import Trainer
from pipeline.layers.optimizer import layer_optimizer
from pipeline.layers.state import State


class LayerByLayer(Trainer):
    """Takes a batch through the net in the pipeline's microbatches, and times each layer's passes and update.

    Augmentation counts as the first layer's, classifier and loss as the last one's.
    """

    def __init__(self, job: Job, rank: int) -> None:
        super().__init__(job, rank)
        self._part = Part(job, rank, "on" if how_compiled(job.spec) is not None else None)
        trained = [list(layer.parameters()) for layer in self._part.layers]
        assert self._part.rule is not None, "the whole net"
        trained[-1] += self._part.rule.parameters()
        self._optimizers = [layer_optimizer(job.spec.settings, 0, parameters) for parameters in trained]
        self._steps: list[list[float]] = []  # of each step, every layer's seconds

    def step(self, portion: Portion) -> Tensor:
        self._part.draw_anew(portion.where)
        spent = [0.0] * len(self._optimizers)
        with self._timed(spent, 0):
            images, labels = self._view(portion), self._labels(portion)
        count = self.job.microbatches
        losses = [
            self._pass(*microbatch, spent)
            for microbatch in zip(images.tensor_split(count), labels.tensor_split(count), strict=True)
        ]
        for number, optimizer in enumerate(self._optimizers):
            with self._timed(spent, number):
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        self._steps.append(spent)
        return torch.stack(losses).sum()

    def take_seconds(self) -> list[float]:
        """Each layer's seconds of a step: medians over the steps since the last call."""
        steps, self._steps = self._steps, []
        return [median(seconds) for seconds in zip(*steps, strict=True)]

    def weights(self) -> State:
        return self._part.state()

    def _pass(self, images: Tensor, labels: Tensor, spent: list[float]) -> Tensor:
        """A microbatch forward and back. Returns its share of the batch's loss ()."""
        last = len(spent) - 1
        entered: list[Tensor] = []
        left: list[Tensor] = []
        x = images
        for number in range(last + 1):
            with self._timed(spent, number):
                entered.append(x.detach().requires_grad_(number > 0))
                x = self._part.layer(number, entered[-1])
                if number == last:
                    x = F.cross_entropy(x, labels) / self.job.microbatches
                left.append(x)
        gradient: Tensor | None = None
        for number in reversed(range(last + 1)):
            with self._timed(spent, number):
                torch.autograd.backward(left[number], gradient)
                gradient = entered[number].grad
        return x.detach()

    @contextmanager
    def _timed(self, spent: list[float], number: int) -> Iterator[None]:
        begun = self._now()
        yield
        spent[number] += self._now() - begun

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
