"""Controls a pipelined run from its first batch to its result, whatever its workers are.

The numbers are made by the stages. What is decided here is what no stage can know alone: which epoch was best, that the
readouts may begin, that it is time to stop.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Protocol

from pipeline.config.run_spec import RunSpec
from pipeline.errors import RunError, StageFailedError
from pipeline.kind import Kind
from pipeline.layers.layer import State, is_finite
from pipeline.runtime.history import History, RunResult, Salvage
from pipeline.runtime.observer import Observer
from pipeline.runtime.passes import Pass, closing_passes, layer_passes, next_phase
from pipeline.telemetry.reports import PassReport, Status

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
) -> RunResult:
    """Runs the passes of ``spec`` through the workers' pipeline.

    Arguments and errors as ``pipeline.runtime.serial.train_serial``.
    """
    history = History.of(spec)
    result = RunResult(
        status="finished", best_epoch=None, weights={}, last={}, history=history, devices=list(group.devices)
    )

    statuses: dict[int, Status] = {}

    def collect() -> None:
        for status, reports in group.poll():
            statuses[status.stage] = status
            for report in reports:
                history.add(report)
                observer.pass_finished(report)
        if len(statuses) == spec.num_stages:
            observer.progressed([statuses[stage] for stage in range(spec.num_stages)])

    def forget_worse() -> None:
        """Has the stages forget the candidates that an epoch validated since was better than."""
        validated = history.epochs(Kind.VALIDATE)
        if validated and validated[-1] != forgotten_up_to[-1] and history.best_epoch is not None:
            forgotten_up_to.append(validated[-1])
            result.best_epoch = history.best_epoch
            group.keep_only(result.best_epoch, validated[-1])

    forgotten_up_to = [-1]
    phases = list(spec.phases)
    stop_by: float | None = None
    begun = time.perf_counter()
    group.feed(layer_passes(phases[0].epochs))
    try:
        while not group.wait(until_next_look(time.perf_counter() - begun)):
            collect()
            forget_worse()
            if phases and history.layers(Kind.VALIDATE, phases[0].epochs[-1]) is not None:
                best = history.require_best_epoch(phases.pop(0))
                if phases:
                    group.feed(next_phase(best, phases[0].epochs))
                else:
                    result.seconds["layers"] = time.perf_counter() - begun
                    readout = spec.settings.readout
                    readout_epochs = readout.readout_epochs if readout.mode == "after" else 0
                    group.feed(closing_passes(best, spec.epochs, readout_epochs, judged=readout.judged))
            if stop_by is None and observer.interrupted():
                group.interrupt()
                stop_by = time.perf_counter() + DRAIN_TIMEOUT
            if stop_by is not None and time.perf_counter() > stop_by:
                break
        last_words = time.perf_counter() + (FINAL_REPORTS_TIMEOUT if stop_by is None else _LONGEST)
        collect()
        while history.layers(Kind.TEST, 0) is None and time.perf_counter() < last_words:
            time.sleep(_SHORTEST / 5)
            collect()
        forget_worse()
        if stop_by is None and history.layers(Kind.TEST, 0) is None:
            raise StageFailedError("the stages ended without reporting on the test images")
    except RunError as error:
        result.status = "failed"
        error.result = result if _salvage(group, result, statuses.values()) else None
        raise
    if history.layers(Kind.TEST, 0) is None:
        result.status = "interrupted"
        if not _salvage(group, result, statuses.values()):
            raise StageFailedError("a stage died while the run was being stopped: nothing of it could be kept")
        if result.lost:
            result.status = "failed"
            failed = StageFailedError(f"a worker died while the run was being stopped: {', '.join(result.lost)} lost")
            failed.result = result
            raise failed
        return result
    result.seconds["readouts_and_test"] = time.perf_counter() - begun - result.seconds["layers"]
    result.last = group.trained()
    result.weights = group.weights()
    return result


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
