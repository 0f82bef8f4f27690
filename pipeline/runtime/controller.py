"""Controls a pipelined run from its first batch to its result, whatever its workers are.

The numbers are made by the stages. What is decided here is what no stage can know alone: which epoch was best, that the
readouts may begin, that it is time to stop.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Protocol

from pipeline.checkpoints.saver import SavedFile
from pipeline.config.run_spec import RunSpec
from pipeline.errors import RunError, StageFailedError
from pipeline.kind import Kind
from pipeline.layers.state import State, is_finite
from pipeline.runtime.checkpointing import NO_CHECKPOINTS, Checkpointing
from pipeline.runtime.history import RunResult, Salvage
from pipeline.runtime.keeper import Keeper, result_of
from pipeline.runtime.observer import Observer
from pipeline.runtime.passes import Pass, coming, next_segment
from pipeline.runtime.states import RunState
from pipeline.telemetry.reports import PassReport, Status
from pipeline.telemetry.trace import StageTrace, TraceWish

_SHORTEST, _LONGEST = 0.1, 0.5  # seconds between two looks at the workers
DRAIN_TIMEOUT = 2.5
"""Seconds that an interrupted pipeline may take to finish what is under way, so that all stages end at one batch."""
FINAL_REPORTS_TIMEOUT = 60.0
"""Seconds within which stages that have ended hand over their last reports."""


def until_next_look(elapsed: float) -> float:
    """Seconds to the next look at the workers of a pipeline that has run for so long.

    A short run is looked at often, so that it ends soon. Each look takes the stages' cores for a moment.
    """
    return min(_LONGEST, max(_SHORTEST, elapsed / 40))


class WorkerGroup(Protocol):
    """The workers of a run: stages and feeders, as threads or as Ray actors."""

    devices: list[str]

    def feed(self, passes: Sequence[Pass]) -> None:
        """Has the feeders send these passes, after those before."""
        ...

    def interrupt(self) -> None:
        """Has the feeders send a stop in place of the next batch."""
        ...

    def poll(self) -> list[tuple[Status, list[PassReport]]]:
        """Where stages are, and their reports since the last poll. A stage that is slow to answer is left out."""
        ...

    def wait(self, seconds: float) -> bool:
        """Waits, less if something happens. Returns whether every stage has handled its stop.

        Raises:
            RunError: a worker failed; the error that came first, naming the worker.
        """
        ...

    def checkpoint(self) -> None:
        """Has the feeders send a token for a checkpoint before the next batch."""
        ...

    def trace(self, wish: TraceWish) -> None:
        """Has the feeders send a token for a trace before the next training batch."""
        ...

    def traces(self) -> list[StageTrace]:
        """Traces that stages have come to the end of since the last call."""
        ...

    def saved(self) -> list[SavedFile]:
        """Files of checkpoints that have come to their end since the last call."""
        ...

    def saving(self) -> bool:
        """Whether files of a checkpoint are being written, or were and ``saved`` has not told of them."""
        ...

    def keep_only(self, best: int, upto: int) -> None:
        """Has the stages forget the candidates up to epoch ``upto`` that are not the best."""
        ...

    def candidate(self, epoch: int) -> State:
        """All layers' weights, and the shared state, at the validation of an epoch."""
        ...

    def weights(self) -> State:
        """All layers' weights, and the shared state, now."""
        ...

    def trained(self) -> State:
        """All weights, the shared state and optimizers at the end of the layers' training, or now."""
        ...

    def salvage(self, epoch: int | None) -> Salvage:
        """As ``candidate`` of an epoch, or ``weights``, and ``trained``: what workers that still live hold."""
        ...


def control(
    spec: RunSpec,
    group: WorkerGroup,
    observer: Observer = Observer(),  # noqa: B008 (it has no state)
    checkpointing: Checkpointing = NO_CHECKPOINTS,
) -> RunResult:
    """Runs the passes of ``spec`` through the workers' pipeline.

    Arguments and errors as ``pipeline.runtime.serial.train_serial``.
    """
    return Controller(spec, group, observer, checkpointing).run()


class Controller:
    """Controls one pipelined run. Arguments as ``control``."""

    def __init__(self, spec: RunSpec, group: WorkerGroup, observer: Observer, checkpointing: Checkpointing) -> None:
        self._spec, self._group, self._observer = spec, group, observer
        self._keeper = Keeper(spec, checkpointing, observer)
        self._result = result_of(spec, checkpointing, group.devices)
        self._history = self._result.history
        self._cut = checkpointing.cut
        self._restored = list(self._cut.restored)  # best epochs of the phases that are over
        self._statuses: dict[int, Status] = {}
        self._judged_up_to = max(self._history.epochs(Kind.VALIDATE), default=-1)
        self._notes: set[str] = set()  # of stages, as told
        self._runs = False  # whether any stage has had its first batch
        self._mark = time.perf_counter()  # up to which ``seconds`` count
        # A run that is being stopped has so long for it.
        self._stop_by: float | None = None
        self._patience = DRAIN_TIMEOUT if checkpointing.folder is None else spec.settings.checkpoint.stop_timeout

    def run(self) -> RunResult:
        """From where the run begins to its result."""
        begun = time.perf_counter()
        self._group.feed(coming(self._spec, self._cut))
        self._feed_next()  # where it was cut at a phase's end
        try:
            while not self._group.wait(until_next_look(time.perf_counter() - begun)):
                self._look()
                if self._stop_by is not None and time.perf_counter() > self._stop_by:
                    break
            self._observer.entered(RunState.FINISHING)
            self._hear_last_words()
        except RunError as error:
            self._result.status = "failed"
            # What can be gone on from need not be gathered from workers that may be dead.
            if not (error.mends and self._keeper.has_checkpoint):
                error.result = self._result if _salvage(self._group, self._result, self._statuses.values()) else None
            raise
        if self._history.layers(Kind.TEST, 0) is None:
            self._result.status = "interrupted"
            if not _salvage(self._group, self._result, self._statuses.values()):
                raise StageFailedError("a stage died while the run was being stopped: nothing of it could be kept")
            if self._result.lost:
                self._result.status, lost = "failed", ", ".join(self._result.lost)
                failed = StageFailedError(f"a worker died while the run was being stopped: {lost} lost")
                failed.result = self._result
                raise failed
            return self._result
        self._count()
        self._result.last = self._group.trained()
        self._result.weights = self._group.weights()
        return self._result

    def _look(self) -> None:
        self._collect()
        if not self._runs and self._stop_by is None and any(s.kind is not None for s in self._statuses.values()):
            self._runs = True
            self._observer.entered(RunState.RUNNING)
        self._keep_best()
        self._feed_next()
        if self._observer.asked_to_save():
            self._group.checkpoint()
        if (wish := self._observer.asked_to_trace()) is not None:
            self._group.trace(wish)
        if self._stop_by is None and self._observer.interrupted():
            self._group.interrupt()
            self._stop_by = time.perf_counter() + self._patience
            self._observer.entered(RunState.DRAINING)

    def _collect(self) -> None:
        """Hears what every stage has to say."""
        saved = self._group.saved()  # first: what was reported before these files is there by now
        for status, reports in self._group.poll():
            self._statuses[status.stage] = status
            self._result.keeps_images |= status.keeps_images
            for note in status.notes:
                if note not in self._notes:
                    self._notes.add(note)
                    self._observer.notified(note)
            for report in reports:
                self._history.add(report)
                self._observer.pass_finished(report)
        if len(self._statuses) == self._spec.num_stages:
            self._observer.progressed([self._statuses[stage] for stage in range(self._spec.num_stages)])
        for trace in self._group.traces():
            self._observer.traced(trace)
        self._keeper.heard(saved)
        self._count()
        self._keeper.seal(self._history, self._restored, self._result.seconds)

    def _keep_best(self) -> None:
        """Has the stages forget the candidates that an epoch validated since was better than."""
        validated = self._history.epochs(Kind.VALIDATE)
        best = self._history.best_epoch
        if not validated or validated[-1] == self._judged_up_to or best is None:
            return
        better = best != self._result.best_epoch
        self._judged_up_to, self._result.best_epoch = validated[-1], best
        self._group.keep_only(best, validated[-1])
        if better and self._observer.wants_best:
            self._observer.improved(best, self._group.candidate(best))

    def _feed_next(self) -> None:
        """What follows a phase, once its last epoch is validated."""
        number, phases = len(self._restored), self._spec.phases
        if number == len(phases) or self._history.layers(Kind.VALIDATE, phases[number].epochs[-1]) is None:
            return
        best = self._history.require_best_epoch(phases[number])
        self._count()
        self._restored.append(best)
        self._group.feed(next_segment(self._spec, best, number + 1))

    def _count(self) -> None:
        """Adds the time since it was counted last to that of the part of the run that is under way."""
        part = "layers" if len(self._restored) < len(self._spec.phases) else "readouts_and_test"
        now = time.perf_counter()
        self._result.seconds[part] = self._result.seconds.get(part, 0.0) + now - self._mark
        self._mark = now

    def _hear_last_words(self) -> None:
        """The reports, and the checkpoint, that stages have left to hand over."""
        stopped = self._stop_by
        last_words = time.perf_counter() + (FINAL_REPORTS_TIMEOUT if stopped is None else _LONGEST)
        self._collect()
        while self._history.layers(Kind.TEST, 0) is None and time.perf_counter() < last_words:
            time.sleep(_SHORTEST / 5)
            self._collect()
        enough = stopped if stopped is not None else last_words
        while (self._keeper.waits or self._group.saving()) and time.perf_counter() < enough:
            time.sleep(_SHORTEST / 5)
            self._collect()
        self._keep_best()
        if stopped is None and self._history.layers(Kind.TEST, 0) is None:
            raise StageFailedError("the stages ended without reporting on the test images")


def _salvage(group: WorkerGroup, result: RunResult, statuses: Iterable[Status]) -> bool:
    """Takes what an unfinished run learned: the best validated weights with what readouts they have by now.

    Where no epoch was validated, the present weights. ``result.lost`` says what dead workers took along. Returns
    whether anything could be had.
    """
    last = len(result.devices) - 1
    # Messages reach the last stage last: what it has done, all have done.
    restored = any(status.restored and status.stage == last for status in statuses)
    found = group.salvage(None if restored else result.best_epoch)
    result.last, result.lost = found.last, found.lost
    result.weights = found.weights if is_finite(found.weights) else {}
    return bool(found.weights)
