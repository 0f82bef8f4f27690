"""Backpropagation as a row of the benchmark."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from launch.bench.backprop.balance import balanced_stages
from launch.bench.backprop.group import WorkerGroup
from launch.bench.backprop.job import PIPELINES, Job, Way, count_of, how_compiled
from launch.bench.backprop.planning import plan
from launch.bench.protocol import Round, Runner
from pipeline.config.run_spec import RunSpec
from pipeline.data.loader import Dataset
from pipeline.layers.state import State

_FIRST_STEPS = 2  # after them everything is compiled, connected and allocated

_TITLES: dict[Way, str] = {
    "backprop": "backprop",
    "dataparallel": "DataParallel backprop",
    "ddp": "DDP backprop",
    "gpipe": "GPipe backprop",
    "1f1b": "1F1B backprop",
}

_ROWS: tuple[tuple[Way, int], ...] = (
    ("backprop", 1),
    ("dataparallel", 1),
    ("ddp", 1),
    ("gpipe", 8),
    ("gpipe", 32),
    ("1f1b", 8),
    ("1f1b", 32),
)


class BackpropRunner(Runner):
    """One way of backpropagation, on processes that live from ``start`` to ``close`` and sleep between rounds.

    Args:
        spec: a run of local learning. It trains its net, from its seed, on its data, with its settings.
        num_devices: devices to use.
        dataset: the opened data, whose first batches are kept in memory and used again and again; None: every batch is
            read, shuffled and put together in the background, by one process.
        warm: steps at the beginning of each round that are not measured.
        balanced: whether a pipeline is cut by the measured times of the net's layers; else as the run is.
    """

    family: Literal["backprop", "local"] = "backprop"

    def __init__(
        self,
        spec: RunSpec,
        way: Way,
        num_devices: int,
        *,
        microbatches: int = 1,
        dataset: Dataset | None,
        warm: int = 2,
        balanced: bool = False,
    ) -> None:
        self.name = f"{way}-{microbatches}" if microbatches > 1 else way
        devices = count_of(1 if way == "backprop" else num_devices, "device")
        cut = f", {microbatches} microbatches" if microbatches > 1 else ""
        self.title = f"{_TITLES[way]}{cut}, {devices}{_lacks(way, how_compiled(spec))}"
        self._spec, self._way, self._num_devices, self._microbatches = spec, way, num_devices, microbatches
        self._dataset, self._warm, self._balanced = dataset, warm, balanced
        self._crew: WorkerGroup | None = None
        self._job: Job | None = None

    def start(self) -> None:
        job = plan(self._spec, self._way, self._num_devices, self._microbatches)
        if self._balanced and self._way in PIPELINES:
            job = replace(job, stages=balanced_stages(job, self._dataset))
        self._job, self._crew = job, WorkerGroup(self.title, self.name, job, self._dataset)
        self._crew.ask("round", 0, _FIRST_STEPS)

    def round(self, steps: int) -> Round:
        """Trains on for so many measured steps.

        Raises:
            CannotRunError: memory ran out.
            StageFailedError: a process failed or died; the message names it and what it said.
        """
        assert self._crew is not None and self._job is not None, "start() comes first"
        shares = self._crew.ask("round", self._warm, steps)
        losses = [share.loss for share in shares if share.loss is not None]
        return Round(
            images=steps * self._job.batch_size,
            seconds=max(share.seconds for share in shares),
            devices=tuple(device for share in shares for device in share.devices),
            bytes_per_step=sum(share.bytes_per_step for share in shares),
            loss=math.fsum(losses) / len(losses),
        )

    def weights(self) -> State:
        """The net's and its classifier's weights, on the CPU, named as ``LocalLayer.weights`` names them."""
        assert self._crew is not None, "start() comes first"
        return {name: value for part in self._crew.ask("weights") for name, value in part.items()}

    def close(self) -> None:
        if self._crew is not None:
            self._crew.close()
            self._crew = None


def _lacks(way: Way, how: Literal["on", "graphs"] | None) -> str:
    """What of the run's compilation a way cannot have."""
    if way == "dataparallel" and how is not None:
        return ", not compiled"
    return ", compiled without CUDA graphs" if way in PIPELINES and how == "graphs" else ""


def backprop_runners(
    spec: RunSpec, num_devices: int, *, dataset: Dataset | None, warm: int = 2, balanced: bool = False
) -> list[BackpropRunner]:
    """Every row of backpropagation, none of them started: see ``BackpropRunner``."""
    return [
        BackpropRunner(spec, way, num_devices, microbatches=microbatches, dataset=dataset, warm=warm, balanced=balanced)
        for way, microbatches in _ROWS
    ]
