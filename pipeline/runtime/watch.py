"""What is noted of a serial run while it goes on: where its time goes, how far it is, which epoch was best.

Also what is left of a run that was interrupted or failed. None of it changes a number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from pipeline.config.run_spec import Phase, RunSpec
from pipeline.data.loader import Batch, Dataset, Split
from pipeline.errors import NonFiniteLossError, RunError, StageFailedError
from pipeline.kind import Kind
from pipeline.layers.layer import LocalLayer, State, is_finite
from pipeline.layers.tallies import TrainTally
from pipeline.runtime.history import History, RunResult
from pipeline.runtime.observer import Observer
from pipeline.telemetry.clock import Clock, TimeCategory
from pipeline.telemetry.reports import PassReport, Status
from pipeline.telemetry.steps import BusyMeter


class _InterruptedError(Exception):
    """The person asked to stop."""


class Watch:
    """Notes what a serial run does. Arguments as ``pipeline.runtime.serial.train_serial``."""

    def __init__(self, spec: RunSpec, observer: Observer) -> None:
        self._spec, self._device = spec, spec.stage_device(0)
        self._observer = observer
        self._clock, self._history = Clock(), History.of(spec)
        self._busy = BusyMeter(self._clock, self._device)
        name = str(self._device)
        self._status = Status(stage=0, account=self._clock.read(), losses=[math.nan] * spec.num_layers, device=name)
        self._result = RunResult(
            status="finished", best_epoch=None, weights={}, last={}, history=self._history, devices=[name]
        )
        self._restored = False
        self._begun = 0.0

    def over(self, train: Callable[[], None], *, weights: Callable[[], State], state: Callable[[], State]) -> RunResult:
        """Has the run train, and gives what it learned: also of one that is interrupted.

        Raises:
            RunError: the run failed; its ``result`` holds the best validated weights, with what readouts they have by
                now, or where there are none yet the present ones.
        """
        result = self._result
        self._clock.restart()
        self._begun = time.perf_counter()
        try:
            train()
            result.seconds["readouts_and_test"] = time.perf_counter() - self._begun
            result.weights = weights()
        except Exception as stop:
            result.status = "interrupted" if isinstance(stop, _InterruptedError) else "failed"
            result.last = result.last or state()
            kept = weights() if self._restored or not result.weights else result.weights
            result.weights = kept if is_finite(kept) else {}
            if not isinstance(stop, _InterruptedError):
                raise self._as_run_error(stop) from stop
        return result

    def batches(self, dataset: Dataset, split: Split, kind: Kind, epoch: int) -> Iterator[Batch]:
        """The batches of a pass. Their reading counts as waiting, what is done with them as busy."""
        source = dataset.batches(split, epoch=epoch, batch_size=self._spec.settings.train.batch_size)
        while True:
            with self._clock.measure(TimeCategory.WAIT_IN):
                batch = next(source, None)
            if batch is None:
                return
            self._hear()
            self._status.kind, self._status.epoch, self._status.step = kind, epoch, batch.step
            with self._busy.step():
                yield batch
            self._status.account = self._clock.read()
            self._observer.progressed([replace(self._status, losses=list(self._status.losses))])

    def between(self, layers: Sequence[LocalLayer]) -> Iterator[LocalLayer]:
        """The layers, first to last; an interrupt is heard between two of them."""
        for layer in layers:
            self._hear()
            yield layer

    def trained(self, tallies: Sequence[TrainTally], num_images: int, *, last: bool) -> None:
        """Every layer has learned from a batch."""
        self._status.images += num_images
        if last or self._device.type == "cpu":  # reading a loss is free on a CPU and waits for a GPU
            self._status.losses = [tally.finite_latest() for tally in tallies]

    def report(self, said: PassReport) -> PassReport:
        """A pass is over."""
        self._busy.finish()
        said.account, said.started_at = self._clock.lap(), self._clock.started_at
        self._history.add(said)
        self._observer.pass_finished(said)
        return said

    def keep_best(self, epoch: int, candidate: State) -> None:
        """After an epoch's validation: keeps the weights that it saw if they are the best so far."""
        if self._history.best_epoch == epoch:
            self._result.best_epoch, self._result.weights = epoch, candidate

    def phase_over(self, phase: Phase, state: State) -> tuple[int, State]:
        """The layers of a phase have learned to the end. Gives its best epoch and the weights then.

        Raises:
            RunError: no epoch of the phase is worth keeping.
        """
        if phase == self._spec.phases[-1]:
            self._result.last = state
            self._result.seconds["layers"] = time.perf_counter() - self._begun
        return self._history.require_best_epoch(phase), self._result.weights

    def layers_trained(self) -> None:
        """All layers have learned, and have the weights of their best epochs again."""
        self._restored = True
        self._begun = time.perf_counter()

    def _hear(self) -> None:
        if self._observer.interrupted():
            raise _InterruptedError

    def _as_run_error(self, error: Exception) -> RunError:
        """The error that ends the run, with what was learned before it."""
        if isinstance(error, NonFiniteLossError):
            failure: RunError = error.at(stage=0, epoch=self._status.epoch, step=self._status.step)
        elif isinstance(error, RunError):
            failure = error
        else:
            failure = StageFailedError(f"stage 1 failed: {type(error).__name__}: {error}")
        failure.result = self._result
        return failure
