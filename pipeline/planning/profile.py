"""How long each layer takes on the device at hand, and what it holds: real steps of real layers on random images.

Layers are timed in turn, round by round as the serial loop goes through them, so that a machine that slows down for a
moment slows all of them. Two stages on one CPU share memory and clock: they are timed alone and all at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from pipeline.config.build import open_folder
from pipeline.config.run_spec import RunSpec
from pipeline.data.augment import Augment
from pipeline.errors import RunError, UserError
from pipeline.kind import Kind
from pipeline.layers.layer import LocalLayer
from pipeline.layers.shared_state import FixedState
from pipeline.methods import Activations, BatchPosition
from pipeline.runtime.process import configure_process
from pipeline.spawn import Child, ChildDiedError, ChildFailedError, ask_all
from pipeline.transport.message import IDS, LABELS, Message, message_bytes

SECONDS = 4.0
"""How long layers are timed, alone and again all at once; longer where four rounds take longer."""

_LEAST_ROUNDS, _MOST_ROUNDS = 4, 20
_UNDISTURBED = 0.97  # share of a core that a single thread gets on a machine that is its own
_BATCHES = 4  # read to time the feeder
_COPIES = 5
_LARGEST_JITTER = 0.3
_OTHERS = 0.06  # cores that Ray's processes and the command take beside CPU stages: 1.0 to 1.3 s in 20 s were seen
_CROWDED = 0.94  # four stages on two cores gave 623 images/s, and 13 % more were to be expected of their layers' times
_TIMEOUT = 600.0  # seconds until processes that do not answer are given up


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One layer's training step: medians in seconds, sizes in bytes."""

    forward: float
    """Until its activations can be sent."""
    loss: float
    """The local loss."""
    backward: float
    update: float
    """The optimizer's step, and that of an online readout."""
    enter: float = 0.0
    """Augmentation of the batch; the first layer's alone."""
    bytes_out: int
    """A message to the next layer, labels included."""
    weight_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    """What the forward pass keeps for the backward pass, its input apart. On CUDA: the step's peak."""

    @property
    def before(self) -> float:
        """Seconds until its activations can be sent, augmentation included."""
        return self.enter + self.forward

    @property
    def after(self) -> float:
        """Seconds of what follows."""
        return self.loss + self.backward + self.update

    @property
    def seconds(self) -> float:
        return self.before + self.after


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What is known of a run's layers on a machine.

    Attributes:
        alone: each layer's cost with nothing else at work.
        busy: the same with ``num_busy`` devices at work.
        jitter: how much a step's seconds vary: robust standard deviation over median, while all are busy.
        feed_seconds: a feeder's, for a batch that it has read before where memory allows to keep it.
        feed_bytes: of a message to the first stage.
        copy_bandwidth: bytes per second of a copy within the device's memory.
        link_bandwidth: bytes per second between two GPUs of this machine; None where there are none.
        others, crowded: ``pipeline.planning.parts.Cores``; seen on one machine, and not measured anew.
        took: seconds that it took to find out.
    """

    alone: tuple[LayerCost, ...]
    busy: tuple[LayerCost, ...]
    num_busy: int
    jitter: float
    feed_seconds: float
    feed_bytes: int
    copy_bandwidth: float
    link_bandwidth: float | None = None
    others: float = 0.0
    crowded: float = 1.0
    took: float = 0.0

    @property
    def speed_alone(self) -> float:
        """How much faster a device is while no other one works."""
        seconds = [sum(cost.seconds for cost in costs) for costs in (self.busy, self.alone)]
        return max(1.0, seconds[0] / seconds[1])


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one process measured of one kind of load."""

    costs: tuple[LayerCost, ...]
    jitter: float
    copy_bandwidth: float


def profile(spec: RunSpec, device: torch.device, *, seconds: float = SECONDS) -> Sample:
    """Times every layer of a run on a device, in this thread."""
    return _Workbench(spec, device).run(seconds)


class _Workbench:
    """All layers of a run on one device, and a batch of random images for them."""

    def __init__(self, spec: RunSpec, device: torch.device) -> None:
        configure_process(spec, device)
        self.spec, self._device = spec, device
        shared = _Unchanging(spec.shared_state().values.detach()) if spec.shared_versions is not None else None
        self._layers = [_Timed(LocalLayer(spec, index, device, shared)) for index in range(spec.num_layers)]
        self._augment = Augment(spec.augment, seed=spec.settings.train.seed, device=device)
        generator = torch.Generator().manual_seed(spec.settings.train.seed)
        batch = spec.settings.train.batch_size
        self._images = torch.randint(256, (batch, *spec.shape), dtype=torch.uint8, generator=generator)
        self._labels = torch.randint(len(spec.classes), (batch,), generator=generator).to(device)
        self._step = 0
        self._sizes: list[dict[str, int]] = []

    def warm(self) -> None:
        """The first round: what is made or chosen once, and what each layer holds."""
        self._round(weigh=True)

    def run(self, seconds: float) -> Sample:
        """Times rounds for so many seconds, and at least four.

        Where other programs take part of the core that a single thread is on, that part of the time does not count.
        """
        if not self._sizes:
            self.warm()
        rounds: list[list[_Phases]] = []
        begun, worked = time.perf_counter(), time.process_time()
        end = time.perf_counter() + seconds
        while len(rounds) < _LEAST_ROUNDS or (time.perf_counter() < end and len(rounds) < _MOST_ROUNDS):
            rounds.append(self._round())
        share = 1.0
        if self._device.type == "cpu" and self.spec.settings.pipeline.threads == 1:
            share = (time.process_time() - worked) / (time.perf_counter() - begun)
            share = 1.0 if share > _UNDISTURBED else share
        costs = tuple(
            LayerCost(
                enter=share * median(phases.enter for phases in layer),
                forward=share * median(phases.forward for phases in layer),
                loss=share * median(phases.loss for phases in layer),
                backward=share * median(phases.backward for phases in layer),
                update=share * median(phases.update for phases in layer),
                **sizes,
            )
            for layer, sizes in zip(zip(*rounds, strict=True), self._sizes, strict=True)
        )
        return Sample(
            costs=costs,
            jitter=_spread([[phases.seconds for phases in layer] for layer in zip(*rounds, strict=True)]),
            copy_bandwidth=self._time_copies(max(cost.bytes_out for cost in costs)),
        )

    def _round(self, *, weigh: bool = False) -> list[_Phases]:
        """One step of every layer. Each gets what the one before passed on."""
        where = self.spec.batch_position(Kind.TRAIN, 0, self._step)
        begun = self._now()
        first = self._layers[0].layer
        views = self._augment.views(self._images, epoch=0, position=0, num_views=first.rule.num_views)
        activations = first.make_inputs(views, self._labels, where)
        enter = self._now() - begun
        phases: list[_Phases] = []
        for timed in self._layers:
            entered = activations
            if weigh:
                activations, kept = timed.weigh(entered, self._labels, where)
                self._sizes.append(self._sizes_of(timed.layer, activations, kept))
                continue
            activations, spent = timed.train(entered, self._labels, where, self._now)
            phases.append(replace(spent, enter=enter) if not phases else spent)
        self._step += 1
        return phases

    def _sizes_of(self, layer: LocalLayer, passed: Activations, kept: int) -> dict[str, int]:
        beside = dict.fromkeys((LABELS, IDS), self._labels)
        trained = [*layer.net.parameters(), *layer.rule.parameters()]
        states = [layer.optimizer.state]
        if layer.has_readout:
            trained += layer.readout.parameters()
            states.append(layer.readout_training.optimizer.state)
        moments = [value for state in states for values in state.values() for value in values.values()]
        return {
            "bytes_out": message_bytes(Message(Kind.TRAIN, tensors={**passed, **beside})),
            "weight_bytes": sum(parameter.nbytes for parameter in trained),
            "optimizer_bytes": sum(moment.nbytes for moment in moments),
            "activation_bytes": kept,
        }

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _time_copies(self, size: int) -> float:
        """Bytes per second of a copy as large as a message."""
        source, target = (torch.zeros(size, dtype=torch.uint8, device=self._device) for _ in range(2))
        seconds = []
        for _ in range(_COPIES):
            begun = self._now()
            target.copy_(source)
            seconds.append(self._now() - begun)
        return size / median(seconds)


@dataclass(frozen=True, kw_only=True)
class _Phases:
    """Seconds of one step of one layer."""

    forward: float
    loss: float
    backward: float
    update: float
    enter: float = 0.0

    @property
    def seconds(self) -> float:
        return self.forward + self.loss + self.backward + self.update


class _Timed:
    """A layer whose training step says when its phases end."""

    def __init__(self, layer: LocalLayer) -> None:
        self.layer = layer
        self._marks: dict[str, float] = {}
        self._now: Callable[[], float] | None = None
        layer.optimizer.register_step_pre_hook(lambda *_: self._mark("backward"))
        loss = layer.rule.loss

        def timed_loss(*arguments: Any) -> Tensor:
            value = loss(*arguments)
            self._mark("loss")
            return value

        layer.rule.loss = timed_loss  # type: ignore[assignment, method-assign]

    def _mark(self, phase: str) -> None:
        if self._now is not None:
            self._marks[phase] = self._now()

    def train(
        self, activations: Activations, labels: Tensor, where: BatchPosition, now: Callable[[], float]
    ) -> tuple[Activations, _Phases]:
        self._now = now
        begun = now()
        passed, _ = self.layer.train(activations, labels, where, send=lambda _: self._mark("forward"))
        ended = now()
        self._now = None
        sent, lossed, learned = (self._marks[phase] for phase in ("forward", "loss", "backward"))
        return passed, _Phases(
            forward=sent - begun, loss=lossed - sent, backward=learned - lossed, update=ended - learned
        )

    def weigh(self, activations: Activations, labels: Tensor, where: BatchPosition) -> tuple[Activations, int]:
        """A step, and the bytes that it holds beside weights, optimizer and input."""
        device = self.layer.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            passed, _ = self.layer.train(activations, labels, where)
            return passed, torch.cuda.max_memory_allocated(device) - before
        known = {t.untyped_storage().data_ptr() for t in (*activations.values(), *self.layer.net.parameters())}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            passed, _ = self.layer.train(activations, labels, where)
        return passed, sum(kept.values())


class _Unchanging(FixedState):
    """A state that takes contributions and stays as it is: versions are always there."""

    def push(self, layer: int, step: int, contribution: Tensor) -> None:
        """Takes a contribution."""


def _spread(samples: Sequence[Sequence[float]]) -> float:
    """Standard deviation over median, from the median deviation: one stray step says nothing of the others.

    Args:
        samples: for each layer, its seconds in every round.
    """
    relative = [abs(value / median(layer) - 1) for layer in samples for value in layer]
    return min(_LARGEST_JITTER, 1.4826 * median(relative))


def time_feed(spec: RunSpec) -> float:
    """Seconds of a feeder for a batch of images that it has seen before, as in every epoch but the first."""
    dataset = open_folder(spec.settings, Path(spec.data_folder))
    seconds = []
    for _ in range(2):
        batches = dataset.batches("train", epoch=0, batch_size=spec.settings.train.batch_size)
        begun = time.perf_counter()
        read = sum(1 for _ in islice(batches, _BATCHES))
        seconds.append((time.perf_counter() - begun) / read)
    return seconds[-1]


# ---------------------------------------------------------------------------------------------------------------------
# In processes of their own, one per device that is to be busy: what they leave behind ends with them


def profile_here(spec: RunSpec, num_busy: int, *, seconds: float = SECONDS) -> Profile:
    """Times the layers on this machine: on one device alone, then on ``num_busy`` at once.

    Raises:
        RunError: a process that timed them failed or died, as where a batch does not fit in memory.
    """
    begun = time.perf_counter()
    with ExitStack() as stack:
        workers = [stack.enter_context(Child("timing the layers", _workbench, spec)) for _ in range(num_busy)]
        _ask(workers, _Workbench.warm, spec)
        feed_seconds, link, alone = _ask(workers[:1], partial(_first_alone, seconds=seconds), spec)[0]
        samples = [alone]
        if num_busy > 1:
            samples = _ask(workers, partial(_Workbench.run, seconds=seconds), spec)
    return replace(
        joined(samples, spec),
        alone=alone.costs,
        feed_seconds=feed_seconds,
        link_bandwidth=link,
        took=time.perf_counter() - begun,
    )


def joined(samples: Sequence[Sample], spec: RunSpec) -> Profile:
    """A profile of what several devices measured at once: medians over them."""
    busy = tuple(
        LayerCost(
            **{
                name: median(getattr(cost, name) for cost in costs)
                for name in ("enter", "forward", "loss", "backward", "update")
            },
            **{name: getattr(costs[0], name) for name in ("bytes_out", *_SIZES)},
        )
        for costs in zip(*(sample.costs for sample in samples), strict=True)
    )
    images = torch.empty(spec.settings.train.batch_size, *spec.shape, dtype=torch.uint8, device="meta")
    return Profile(
        alone=busy,
        busy=busy,
        num_busy=len(samples),
        jitter=median(sample.jitter for sample in samples),
        feed_seconds=0.0,
        feed_bytes=images.nbytes + 2 * 8 * len(images),
        copy_bandwidth=median(sample.copy_bandwidth for sample in samples),
        others=_OTHERS if spec.device == "cpu" else 0.0,
        crowded=_CROWDED if spec.device == "cpu" else 1.0,
    )


_SIZES = ("weight_bytes", "optimizer_bytes", "activation_bytes")


_Task = Callable[[_Workbench], Any]


def _workbench(spec: RunSpec) -> Callable[[_Task], Any]:
    """In a process of its own: does with its workbench whatever it is asked to."""
    bench = _Workbench(spec, spec.stage_device(0))
    return lambda task: task(bench)


def _first_alone(bench: _Workbench, seconds: float) -> tuple[float, float | None, Sample]:
    """What one process measures while the others sleep: seconds of a feeder, bytes per second of a link, the layers."""
    return time_feed(bench.spec), link_bandwidth(bench.spec), bench.run(seconds)


def _ask(workers: Sequence[Child[_Task, Any]], task: _Task, spec: RunSpec) -> list[Any]:
    """What the task gives in every process. Raises RunError or UserError for what a person is to know."""
    try:
        return ask_all(workers, task, timeout=_TIMEOUT)
    except TimeoutError:
        raise RunError(
            f"timing the layers took longer than {_TIMEOUT:g} s. Give a smaller `batch_size` or net."
        ) from None
    except ChildDiedError as death:
        raise RunError(
            f"a process that timed the layers died, as it does where memory ends. `batch_size` "
            f"{spec.settings.train.batch_size} may be too large for this machine: give a smaller one."
        ) from death
    except ChildFailedError as failure:
        if isinstance(failure.error, RunError | UserError):
            raise failure.error from None
        raise


def link_bandwidth(spec: RunSpec) -> float | None:
    """Bytes per second from one GPU of this machine to another; None where there are not two."""
    if spec.device != "cuda" or torch.cuda.device_count() < 2:
        return None
    source = torch.zeros(64 << 20, dtype=torch.uint8, device="cuda:0")
    target = torch.zeros_like(source, device="cuda:1")
    seconds = []
    for _ in range(_COPIES):
        torch.cuda.synchronize(0)
        begun = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize(0)
        torch.cuda.synchronize(1)
        seconds.append(time.perf_counter() - begun)
    return source.nbytes / median(seconds)
