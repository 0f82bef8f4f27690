"""What is noted of a serial run while it goes on: where its time goes, how far it is, which epoch was best.

Also what is left of a run that was interrupted or failed. None of it changes a number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from pipeline.checkpoints.saver import Saver
from pipeline.config.run_spec import Phase, RunSpec
from pipeline.data.loader import Batch, Dataset, Split
from pipeline.errors import NonFiniteLossError, RunError, StageFailedError
from pipeline.kind import Kind
from pipeline.layers.layer import LocalLayer
from pipeline.layers.shared_state import VersionedState
from pipeline.layers.state import State, is_finite
from pipeline.layers.tallies import TrainTally
from pipeline.runtime.checkpointing import NO_CHECKPOINTS, Checkpointing, pacer_of
from pipeline.runtime.history import RunResult
from pipeline.runtime.keeper import Keeper, result_of
from pipeline.runtime.observer import Observer
from pipeline.runtime.parts import Kept
from pipeline.runtime.states import RunState
from pipeline.telemetry.clock import Clock, TimeCategory
from pipeline.telemetry.machine import MachineProbe
from pipeline.telemetry.memory import bytes_now
from pipeline.telemetry.reports import PassReport, Status
from pipeline.telemetry.steps import BusyMeter


class _InterruptedError(Exception):
    """The person asked to stop."""

    def __init__(self, *, between_batches: bool) -> None:
        super().__init__()
        self.between_batches = between_batches


class Watch:
    """Notes what a serial run does. Arguments as ``pipeline.runtime.serial.train_serial``.

    Attributes:
        observer: watches the run.
        saver, shared_saver: write checkpoints, the layers' parts and the shared state's; None where the run saves none.
    """

    def __init__(self, spec: RunSpec, observer: Observer, checkpointing: Checkpointing = NO_CHECKPOINTS) -> None:
        self._spec, self._device = spec, spec.stage_device(0)
        self.observer = observer
        self._clock = Clock()
        self._busy = BusyMeter(self._clock, self._device)
        self._machine = MachineProbe(self._device)
        name = str(self._device)
        self._status = Status(stage=0, account=self._clock.read(), losses=[math.nan] * spec.num_layers, device=name)
        self._result = result_of(spec, checkpointing, [name])
        self._history = self._result.history
        self._restored = False
        self._mark = 0.0
        folder = checkpointing.folder
        self.saver = Saver(folder) if folder is not None else None
        self.shared_saver = Saver(folder) if folder is not None and spec.shared_versions is not None else None
        self._keeper, self._pacer = Keeper(spec, checkpointing, observer), pacer_of(spec, checkpointing)
        self._restored_epochs = list(checkpointing.cut.restored)
        self._patience = spec.settings.checkpoint.stop_timeout if folder is not None else 0.0
        self._asked_to_stop: float | None = None

    def over(
        self,
        train: Callable[[], None],
        *,
        weights: Callable[[], State],
        state: Callable[[], State],
        save: Callable[[], None] = lambda: None,
    ) -> RunResult:
        """Has the run train, and gives what it learned: also of one that is interrupted.

        Args:
            save: saves a checkpoint; asked for between two batches.

        Raises:
            RunError: the run failed; its ``result`` holds the best validated weights, with what readouts they have by
                now, or where there are none yet the present ones.
        """
        result = self._result
        self._clock.restart()
        self._mark = time.perf_counter()
        self.observer.entered(RunState.RUNNING)
        try:
            train()
            self._count()
            result.weights = weights()
        except Exception as stop:
            result.status = "interrupted" if isinstance(stop, _InterruptedError) else "failed"
            if isinstance(stop, _InterruptedError):
                self.observer.entered(RunState.DRAINING)
                if stop.between_batches:
                    save()
            result.last = result.last or state()
            kept = weights() if self._restored or not result.weights else result.weights
            result.weights = kept if is_finite(kept) else {}
            if not isinstance(stop, _InterruptedError):
                raise self._as_run_error(stop) from stop
        finally:
            self.observer.entered(RunState.FINISHING)
            for saver in self._savers:
                saver.close()
            self._seal()
        return result

    def save_is_due(self) -> bool:
        """Whether a checkpoint is due between the last batch and the next one. Makes those whole that are written."""
        if self._pacer is None:
            return False
        self._seal()
        if self.observer.asked_to_save():
            self._pacer.ask()
        return self._pacer.due()

    def kept(self, tallies: list[TrainTally]) -> Kept:
        """What is saved beside the layers."""
        result = self._result
        best = {result.best_epoch: result.weights} if result.best_epoch is not None else {}
        return Kept(best, result.last or None, tallies, self._status.images)

    def go_on(self, kept: Kept, shared: VersionedState | None, *, restored: bool) -> None:
        """Takes what a checkpoint has beside the layers.

        Args:
            shared: the state that layers share, if they share one, as of the checkpoint.
            restored: whether the layers have learned to the end and have their best weights again.
        """
        result, self._restored = self._result, restored
        self._status.images, result.last = kept.images, kept.trained or {}
        if result.last and shared is not None:
            result.last = result.last | shared.state()
        if result.best_epoch is not None:
            of_shared = shared.candidate_weights(result.best_epoch) if shared is not None else {}
            result.weights = kept.candidates[result.best_epoch] | of_shared

    def _seal(self) -> None:
        for saver in self._savers:
            self._keeper.heard(saver.take())
        self._keeper.seal(self._history, self._restored_epochs, self._result.seconds)

    @property
    def _savers(self) -> list[Saver]:
        return [saver for saver in (self.saver, self.shared_saver) if saver is not None]

    def _count(self) -> None:
        """Adds the time since it was counted last to that of the part of the run that is under way."""
        part = "readouts_and_test" if self._restored else "layers"
        now = time.perf_counter()
        self._result.seconds[part] = self._result.seconds.get(part, 0.0) + now - self._mark
        self._mark = now

    def batches(self, dataset: Dataset, split: Split, kind: Kind, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of a pass. Their reading counts as waiting, what is done with them as busy."""
        size = self._spec.settings.train.batch_size
        source = dataset.batches(split, epoch=epoch, batch_size=size, first=first)
        self._status.memory = bytes_now(self._device)  # once a pass: steps may take milliseconds
        while True:
            with self._clock.measure(TimeCategory.WAIT_IN):
                batch = next(source, None)
            if batch is None:
                return
            self._hear(between_batches=True)
            self._status.kind, self._status.epoch, self._status.step = kind, epoch, batch.step
            with self._busy.step():
                yield batch
            self._status.account, self._status.machine = self._clock.read(), self._machine.read()
            self.observer.progressed([replace(self._status, losses=list(self._status.losses))])

    def between(self, layers: Sequence[LocalLayer]) -> Iterator[LocalLayer]:
        """The layers, first to last; an interrupt is heard between two of them, where no checkpoint is to be saved."""
        for layer in layers:
            self._hear(between_batches=False)
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
        self.observer.pass_finished(said)
        return said

    def keep_best(self, epoch: int, candidate: State) -> None:
        """After an epoch's validation: keeps the weights that it saw if they are the best so far."""
        if self._history.best_epoch == epoch:
            self._result.best_epoch, self._result.weights = epoch, candidate
            self.observer.improved(epoch, candidate)

    def phase_over(self, phase: Phase, state: State) -> tuple[int, State]:
        """The layers of a phase have learned to the end. Gives its best epoch and the weights then.

        Raises:
            RunError: no epoch of the phase is worth keeping.
        """
        if phase == self._spec.phases[-1]:
            self._result.last = state
        self._count()
        best = self._history.require_best_epoch(phase)
        self._restored_epochs.append(best)
        return best, self._result.weights

    def layers_trained(self) -> None:
        """All layers have learned, and have the weights of their best epochs again."""
        self._restored = True

    def _hear(self, *, between_batches: bool) -> None:
        if not self.observer.interrupted():
            return
        now = time.perf_counter()
        self._asked_to_stop = self._asked_to_stop if self._asked_to_stop is not None else now
        # The batch is worked on to its end where a checkpoint can be saved behind it, as long as that is waited for.
        if between_batches or now - self._asked_to_stop >= self._patience:
            raise _InterruptedError(between_batches=between_batches)

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
