"""In a process of its own: one way to make a training step, timed and profiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from launch.doctor.trace import traced
from pipeline.config.run_spec import RunSpec
from pipeline.data.augment import Augment
from pipeline.errors import RunError
from pipeline.kind import Kind
from pipeline.layers.layer import LocalLayer
from pipeline.layers.shared_state import VersionedState
from pipeline.runtime.process import configure_process
from pipeline.runtime.step_graphs import capture_steps
from pipeline.telemetry.memory import peak_bytes, reset_peak

_WARM, _ROUNDS, _PROFILED = 4, 3, 3


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What a training step costs.

    Attributes:
        seconds: of a step, in each round.
        first_seconds: of the very first one, with all that is made, compiled or captured once.
        kernels, launches, operators: of a step (``launch.doctor.trace``).
        busy_seconds: of a step in which the device computed.
        busy_share: of its time.
        peak_bytes: the allocator's peak on a GPU; on a CPU that of the process.
        tf32_matmul, tf32_convolutions: whether float32 products and convolutions might go by TF32.
        loss: the last layer's, of the last step.
        parameters: of the net, and of what only teaches it: label embeddings, auxiliary nets. None in older files.
    """

    seconds: tuple[float, ...]
    first_seconds: float
    kernels: float | None
    launches: float | None
    operators: float
    busy_seconds: float
    busy_share: float
    peak_bytes: int
    tf32_matmul: bool
    tf32_convolutions: bool
    loss: float
    parameters: tuple[int, ...] = ()


class SerialSteps:
    """Training steps as the serial loop makes them, on random images (N, C, H, W) that are on the host."""

    def __init__(self, spec: RunSpec) -> None:
        self.device = spec.stage_device(0)
        configure_process(spec, self.device)
        self._spec = spec
        shared = VersionedState(spec) if spec.shared_versions is not None else None
        self._layers = [LocalLayer(spec, index, self.device, shared) for index in range(spec.num_layers)]
        self._augment = Augment(spec.augment, seed=spec.settings.train.seed, device=self.device)
        batch, generator = spec.settings.train.batch_size, torch.Generator().manual_seed(0)
        images = torch.randint(256, (batch, *spec.shape), dtype=torch.uint8, generator=generator)
        self._images = images.pin_memory() if self.device.type == "cuda" else images
        self._labels = torch.randint(len(spec.classes), (batch,), generator=generator).to(self.device)
        self._step = 0
        of_net, of_rules = spec.num_parameters()
        self.num_parameters = (of_net, of_rules + (shared.shape.numel() if shared is not None else 0))
        begun = self._now()
        capture_steps(spec, self._layers)
        self.prepared = self._now() - begun
        """Seconds that the steps' CUDA graphs took to be captured."""

    def make(self, steps: int) -> float:
        """Makes so many; returns their seconds, all that they started on the device included."""
        begun = self._now()
        for _ in range(steps):
            self._make_one()
        return self._now() - begun

    def _make_one(self) -> None:
        where = self._spec.batch_position(Kind.TRAIN, 0, self._step)
        first = self._layers[0]
        views = self._augment.views(self._images, epoch=0, position=0, num_views=first.rule.num_views)
        activations = first.make_inputs(views, self._labels, where)
        for layer in self._layers:
            activations, self.loss = layer.train(activations, self._labels, where)
        self._step += 1

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def measured(spec: RunSpec) -> Callable[[int], StepCost]:
    """Prepares the steps; answers a number of steps a round with what one costs.

    Raises:
        RunError: it does not fit in memory, it is no CUDA graph, or the loss is no number.
    """

    def answer(steps: int) -> StepCost:
        try:
            return _measure(spec, steps)
        except torch.OutOfMemoryError as error:
            raise RunError(f"a batch of {spec.settings.train.batch_size} does not fit in the GPU's memory") from error

    return answer


def _measure(spec: RunSpec, steps: int) -> StepCost:
    work = SerialSteps(spec)
    device = work.device
    first = work.prepared + work.make(1)
    work.make(min(_WARM, steps))
    reset_peak(device)
    seconds = tuple(work.make(steps) / steps for _ in range(_ROUNDS))
    peak = peak_bytes(device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiled:
        work.make(_PROFILED)
    trace = traced(profiled, device.type, _PROFILED)
    loss = float(work.loss)
    if not torch.isfinite(work.loss):
        raise RunError(f"the loss is {loss}: what such a step computes is worth nothing, and it may be faster")
    busy = trace.busy_seconds / median(seconds)
    return StepCost(
        seconds=seconds,
        first_seconds=first,
        kernels=trace.kernels,
        launches=trace.launches,
        operators=trace.operators,
        busy_seconds=trace.busy_seconds,
        busy_share=min(1.0, busy),
        peak_bytes=peak,
        tf32_matmul=torch.backends.cuda.matmul.allow_tf32,
        tf32_convolutions=torch.backends.cudnn.allow_tf32,
        loss=loss,
        parameters=work.num_parameters,
    )
