"""What is measured: each layer's tallies over a pass, and where each stage's time went."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.analysis import FeatureMoments
from pipeline.errors import NonFiniteLossError
from pipeline.spec import RunSpec


class Spent(StrEnum):
    """Where a stage's wall time goes: wall = busy + wait-in + wait-out + copy + sync + other."""

    BUSY = "busy"
    WAIT_IN = "wait_in"
    WAIT_OUT = "wait_out"
    COPY = "copy"
    SYNC = "sync"


class Clock:
    """Seconds spent by kind, since the clock was started. One thread measures; any may read, also amid a measurement.

    Every moment belongs to one kind at most, that of the innermost measurement, so nothing counts twice.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kind: Spent | None = None
        self.restart()

    def restart(self) -> None:
        """Begins anew, with nothing spent."""
        with self._lock:
            self._started = self._since = time.perf_counter()
            self.started_at = time.time()
            self._seconds = dict.fromkeys(Spent, 0.0)
            self._last_lap = Account(wall=0.0, seconds=dict.fromkeys(Spent, 0.0))

    @contextmanager
    def measure(self, kind: Spent) -> Iterator[None]:
        """Accounts for the block's time as ``kind``, but for what is measured inside it."""
        outer = self._switch(kind)
        try:
            yield
        finally:
            self._switch(outer)

    def read(self) -> Account:
        """The account since the clock was started."""
        with self._lock:
            now = self._settle()
            return Account(wall=now - self._started, seconds=dict(self._seconds))

    def credit(self, kind: Spent, seconds: float) -> None:
        """Adds time that a GPU spent while its host waited for the next message: it counts as busy alone."""
        with self._lock:
            self._seconds[kind] += seconds
            excess = sum(self._seconds.values()) - (self._settle() - self._started)
            for waiting in (Spent.WAIT_IN, Spent.WAIT_OUT, Spent.COPY, Spent.SYNC):
                taken = min(max(excess, 0.0), self._seconds[waiting])
                self._seconds[waiting] -= taken
                excess -= taken

    def _switch(self, kind: Spent | None) -> Spent | None:
        """From now on time is spent on ``kind``. Returns on what it was spent before."""
        with self._lock:
            self._settle()
            before, self._kind = self._kind, kind
        return before

    def _settle(self) -> float:
        """Accounts for the time until now, which it returns."""
        now = time.perf_counter()
        if self._kind is not None:
            self._seconds[self._kind] += now - self._since
        self._since = now
        return now

    def lap(self) -> Account:
        """The account since the last lap."""
        now = self.read()
        since, self._last_lap = now - self._last_lap, now
        return since


@dataclass(frozen=True)
class Account:
    """A reading of a clock, or the difference of two."""

    wall: float
    seconds: dict[Spent, float]

    def __add__(self, other: Account) -> Account:
        return Account(self.wall + other.wall, {kind: s + other.seconds[kind] for kind, s in self.seconds.items()})

    def __sub__(self, earlier: Account) -> Account:
        return Account(self.wall - earlier.wall, {kind: s - earlier.seconds[kind] for kind, s in self.seconds.items()})

    @property
    def other(self) -> float:
        """Wall seconds that no kind claims."""
        return self.wall - sum(self.seconds.values())

    @property
    def utilisation(self) -> float:
        """Share of wall time in which the stage computed: busy / wall."""
        return self.seconds[Spent.BUSY] / self.wall if self.wall > 0 else 0.0


class BusyMeter:
    """Accounts for each step's time: the host's on a CPU, the kernels' by CUDA events on a GPU, without a stall."""

    def __init__(self, clock: Clock, device: torch.device) -> None:
        self._clock, self._device = clock, device
        self._begin: torch.cuda.Event | None = None
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one step's work."""
        if self._device.type != "cuda":
            with self._clock.measure(Spent.BUSY):
                yield
            return
        self._begin = self._event()
        yield
        self._end()
        while self._pending and self._pending[0][1].query():
            self._credit()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Within a step, around what is no work of the device: sending, with its waiting for the neighbour."""
        if self._device.type != "cuda":
            yield  # the channel accounts for its time itself
            return
        self._end()
        yield
        self._begin = self._event()

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _end(self) -> None:
        assert self._begin is not None, "a step has begun"
        self._pending.append((self._begin, self._event()))
        self._begin = None

    def finish(self) -> None:
        """Waits for the last steps and accounts for them."""
        while self._pending:
            self._pending[0][1].synchronize()
            self._credit()

    def _credit(self) -> None:
        begin, end = self._pending.popleft()
        self._clock.credit(Spent.BUSY, begin.elapsed_time(end) / 1000)


@dataclass(kw_only=True)
class Status:
    """Where a stage is right now, for whoever watches.

    Attributes:
        kind: name of the last message's kind, "" before the first.
        epoch, step: its place in the run.
        images: images in training batches so far (an image counts once, whatever the number of views).
        losses: the latest loss of each of the stage's layers, NaN before the first.
        waiting: messages in the stage's queue.
        device: what the stage runs on, for people.
        restored: whether it has taken the best epoch's weights.
        account: the stage's clock.
    """

    stage: int
    account: Account
    kind: str = ""
    epoch: int = 0
    step: int = 0
    images: int = 0
    losses: list[float] = field(default_factory=list)
    waiting: int = 0
    device: str = ""
    restored: bool = False


@dataclass(kw_only=True)
class LayerReport:
    """What a pass over a split said about one layer.

    Attributes:
        layer: 0-based index.
        losses: local loss of every step (steps,) float32; empty in passes that do not train the layer.
        loss: mean local loss over the images of the pass (over steps, when training).
        accuracy, top_k: share of images whose class is predicted first, or among the first k: by the readout, or where
            there is none by the layer itself; None where neither predicts.
        direct_accuracy: the share that the layer predicts by itself, such as by similarity to label embeddings; None
            for methods that cannot.
        version_skew: by how many updates the label embeddings that the layer read lagged behind, in the mean over the
            steps; None for layers that share none.
        readout_loss: mean cross-entropy of the readout; None without one.
        fisher: Fisher criterion of the pooled features; None in training passes.
        predictions: the class that ``accuracy`` judges for every image (N,) int64, in test passes.
    """

    layer: int
    losses: NDArray[np.float32]
    loss: float
    accuracy: float | None = None
    top_k: float | None = None
    direct_accuracy: float | None = None
    version_skew: float | None = None
    readout_loss: float | None = None
    fisher: float | None = None
    predictions: NDArray[np.int64] | None = None

    @property
    def has_readout(self) -> bool:
        """Whether ``accuracy`` is a readout's, not what the layer predicts by itself."""
        return self.readout_loss is not None


@dataclass(kw_only=True)
class PassReport:
    """One stage's report on a finished pass; ``kind`` is a ``pipeline.messages.Kind`` name."""

    stage: int
    kind: str
    epoch: int
    layers: list[LayerReport]
    ids: NDArray[np.int64] | None = None
    labels: NDArray[np.int64] | None = None
    account: Account | None = None
    """The stage's time since its report before."""
    started_at: float = 0.0
    """When the stage began, in seconds since 1970."""
    steps: StepTimes | None = None
    """When the steps ended; of a stage's training passes."""


@dataclass(frozen=True)
class StepTimes:
    """The steps of a training pass on a stage's clock.

    Attributes:
        ended: when each ended, in seconds since 1970 (steps,) float64.
        spent: what the clock had spent by then (steps, kinds) float64, kinds in the order of ``Spent``.
    """

    ended: NDArray[np.float64]
    spent: NDArray[np.float64]


class StepLog:
    """Notes when the steps of a pass end. On a GPU that is when its kernels end, told by events and without a stall."""

    def __init__(self, clock: Clock, device: torch.device) -> None:
        self._clock, self._device = clock, device
        self._readings: list[Account] = []
        self._events: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """The end of a step. Takes two microseconds."""
        self._readings.append(self._clock.read())
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._events.append(event)

    def take(self) -> StepTimes:
        """The steps since the last call."""
        ended = np.array([self._clock.started_at + reading.wall for reading in self._readings])
        if self._events:
            last = self._events[-1]
            last.synchronize()
            before = [event.elapsed_time(last) / 1000 for event in self._events]
            ended = self._clock.started_at + self._clock.read().wall - np.array(before)
        spent = np.array([[reading.seconds[kind] for kind in Spent] for reading in self._readings])
        self._readings, self._events = [], []
        return StepTimes(ended, spent)


class TrainTally:
    """Losses of one layer over a training pass, kept on the device until asked for (reading each would stall a GPU)."""

    def __init__(self, layer: int, *, readout: bool = False) -> None:
        self.layer, self._readout = layer, readout
        self.losses: list[Tensor] = []
        self._skews: list[int] = []
        self._seen = 0

    def add(self, loss: Tensor | None, version_skew: int | None = None) -> None:
        """Adds a step: its loss (), None for a layer that does not learn in it, and ``LayerReport.version_skew``."""
        if loss is not None:
            self.losses.append(loss.detach())
        if version_skew is not None:
            self._skews.append(version_skew)

    def finite_latest(self) -> float:
        """The last step's loss, NaN before the first step. Waits for the device.

        Raises:
            NonFiniteLossError: one of the losses since the last look was not finite.
        """
        if len(self.losses) == self._seen:
            return math.nan if not self.losses else float(self.losses[-1])
        losses = torch.stack(self.losses[self._seen :]).tolist()
        for step, loss in enumerate(losses, start=self._seen):
            if not math.isfinite(loss):
                raise NonFiniteLossError(self.layer, loss, readout=self._readout, step=step)
        self._seen = len(self.losses)
        return float(losses[-1])

    def report(self) -> LayerReport:
        losses = torch.stack(self.losses).float().cpu().numpy() if self.losses else np.zeros(0, np.float32)
        mean = float(losses.astype(np.float64).mean()) if len(losses) else math.nan
        skew = sum(self._skews) / len(self._skews) if self._skews else None
        return LayerReport(layer=self.layer, losses=losses, loss=mean, version_skew=skew)


class EvaluationTally:
    """Loss, accuracy and Fisher criterion of one layer over a pass that changes nothing."""

    def __init__(self, layer: int, *, num_classes: int, features: int, top_k: int, device: torch.device) -> None:
        self.layer = layer
        self.top_k = min(top_k, num_classes)
        self.moments = FeatureMoments(num_classes, features, device)
        self.count = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.readout_loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._has_readout = False
        self._hits = _Hits(device)
        self._direct_hits = _Hits(device)
        self.predictions: list[Tensor] = []

    @classmethod
    def of(cls, spec: RunSpec, layer: int, features: int, device: torch.device) -> EvaluationTally:
        """The tally of one layer of a run."""
        return cls(layer, num_classes=len(spec.classes), features=features, top_k=spec.top_k, device=device)

    def add(
        self, *, loss: Tensor, features: Tensor, labels: Tensor, scores: Tensor | None, direct_scores: Tensor | None
    ) -> None:
        """Adds a batch.

        Args:
            loss: local loss ().
            features: pooled features (N, C).
            labels: (N,).
            scores: the readout's (N, Z), None without one.
            direct_scores: the layer's own (N, Z), None where its method has none.
        """
        self.count += len(labels)
        self.loss_sum += loss.double() * len(labels)
        self.moments.add(features, labels)
        if direct_scores is not None:
            self._direct_hits.add(direct_scores, labels, self.top_k)
        if scores is not None:
            self.readout_loss_sum += F.cross_entropy(scores.float(), labels, reduction="sum").double()
        judged = scores if scores is not None else direct_scores
        if judged is not None:
            self.predictions.append(self._hits.add(judged, labels, self.top_k))
        self._has_readout = scores is not None

    def report(self, *, with_predictions: bool = False) -> LayerReport:
        judged = bool(self.predictions)
        return LayerReport(
            layer=self.layer,
            losses=np.zeros(0, np.float32),
            loss=float(self.loss_sum) / self.count,
            accuracy=self._hits.share(1, self.count),
            top_k=self._hits.share(self.top_k, self.count),
            direct_accuracy=self._direct_hits.share(1, self.count),
            readout_loss=float(self.readout_loss_sum) / self.count if self._has_readout else None,
            fisher=self.moments.fisher(),
            predictions=torch.cat(self.predictions).cpu().numpy() if judged and with_predictions else None,
        )


class _Hits:
    """How many images a predictor has right, with its first guess and within its first k."""

    def __init__(self, device: torch.device) -> None:
        self._seen = False
        self._first = torch.zeros((), dtype=torch.int64, device=device)
        self._top = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, scores: Tensor, labels: Tensor, top_k: int) -> Tensor:
        """Adds a batch's scores (N, Z) and labels (N,). Returns the first guesses (N,)."""
        ranked = scores.topk(top_k, dim=1).indices  # (N, k)
        hits = ranked == labels[:, None]
        self._first += hits[:, 0].sum()
        self._top += hits.sum()
        self._seen = True
        return ranked[:, 0]

    def share(self, k: int, count: int) -> float | None:
        """The share of ``count`` images that are right within the first k guesses; None where nothing was guessed."""
        if not self._seen:
            return None
        return int(self._first if k == 1 else self._top) / count
