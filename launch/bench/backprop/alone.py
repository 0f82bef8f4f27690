"""Backpropagation on one device: the run's own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from launch.bench.backprop.batches import Portion
from launch.bench.backprop.job import Job
from launch.bench.backprop.trainer import Trainer
from pipeline.errors import NonFiniteLossError
from pipeline.layers.layer import LocalLayer
from pipeline.layers.state import State
from pipeline.runtime.step_graphs import capture_steps


class Alone(Trainer):
    """The run's own serial backpropagation: the layer that ``--baseline bp`` trains."""

    def __init__(self, job: Job, rank: int) -> None:
        super().__init__(job, rank)
        self._layer = LocalLayer(job.spec, 0, self.device)
        capture_steps(job.spec, [self._layer])

    def step(self, portion: Portion) -> Tensor:
        with self.busy.step():
            labels = self._labels(portion)
            activations = self._layer.make_inputs(self._view(portion), labels, portion.where)
            try:
                _, loss = self._layer.train(activations, labels, portion.where)
            except NonFiniteLossError:  # the report says what a loss that is no number means
                return torch.tensor(math.nan)
        return loss

    def weights(self) -> State:
        return self._layer.weights()
