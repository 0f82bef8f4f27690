"""All layers of a run on one device, timed phase by phase: real steps on random images.

Layers are timed in turn, round by round as the serial loop goes through them, so that a machine that slows down for a
moment slows all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from pipeline.config.run_spec import RunSpec
from pipeline.data.augment import Augment
from pipeline.kind import Kind
from pipeline.layers.layer import LocalLayer
from pipeline.layers.shared_state import FixedState
from pipeline.methods import Activations, BatchPosition
from pipeline.planning.costs import LayerCost, Sample
from pipeline.runtime.process import configure_process
from pipeline.transport.message import IDS, LABELS, Message, message_bytes

COPIES = 5
"""How often a copy is timed."""

_LEAST_ROUNDS, _MOST_ROUNDS = 4, 20
_UNDISTURBED = 0.97  # share of a core that a single thread gets on a machine that is its own
_LARGEST_JITTER = 0.3


class Workbench:
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
        for _ in range(COPIES):
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
