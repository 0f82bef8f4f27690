"""Conducts a pipelined run from its first batch to its result, whoever the workers are.

The numbers are made by the stages. What is decided here is what no stage can know alone: which epoch was best, that the
readouts may begin, that it is time to stop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from pipeline.errors import RunError, StageFailedError
from pipeline.history import History, RunResult
from pipeline.layer import State, is_finite
from pipeline.messages import Kind
from pipeline.metrics import PassReport, Status
from pipeline.schedule import Pass, closing_passes, layer_passes
from pipeline.spec import RunSpec

POLL = 0.2
"""Seconds between two looks at the workers."""
DRAIN = 2.5
"""Seconds that an interrupted pipeline may take to finish what is under way, so that all stages end at one batch."""


class Crew(Protocol):
    """The workers of a run: stages and feeders, as threads or as Ray actors."""

    devices: list[str]

    def feed(self, passes: Sequence[Pass]) -> None:
        """Has the feeders send these passes, after those before."""
        ...

    def interrupt(self) -> None:
        """Has the feeders send a stop in place of the next batch."""
        ...

    def poll(self) -> list[tuple[Status, list[PassReport]]]:
        """For each stage where it is, and its reports since the last poll."""
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
        """All layers' weights at the validation of an epoch."""
        ...

    def weights(self) -> State:
        """All layers' weights now."""
        ...

    def trained(self) -> State:
        """All layers' weights and optimizers at the end of the layers' training, or now."""
        ...


def conduct(
    spec: RunSpec,
    crew: Crew,
    *,
    observe: Callable[[PassReport], None] = lambda report: None,
    follow: Callable[[list[Status]], None] = lambda statuses: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> RunResult:
    """Runs the passes of ``spec`` through the crew's pipeline. Arguments and errors as ``pipeline.reference.train``."""
    settings = spec.settings
    epochs = settings.train.epochs
    readout_epochs = settings.head.head_epochs if settings.head.mode == "after" else 0
    history = History(spec.num_layers)
    result = RunResult(
        status="finished", best_epoch=None, weights={}, last={}, history=history, devices=list(crew.devices)
    )

    def collect() -> None:
        statuses = []
        for status, reports in crew.poll():
            statuses.append(status)
            for report in reports:
                history.add(report)
                observe(report)
        follow(statuses)

    closing = False
    stop_by: float | None = None
    begun = time.perf_counter()
    crew.feed(layer_passes(epochs))
    try:
        while not crew.wait(POLL):
            collect()
            if history.best_epoch != result.best_epoch or not closing:
                validated = history.epochs(Kind.VALIDATE)
                result.best_epoch = history.best_epoch if validated else None
                if result.best_epoch is not None:
                    crew.keep_only(result.best_epoch, validated[-1])
            if not closing and history.layers(Kind.VALIDATE, epochs - 1) is not None:
                assert result.best_epoch is not None, "the last epoch was validated"
                crew.feed(closing_passes(result.best_epoch, epochs, readout_epochs))
                closing = True
                result.seconds["layers"] = time.perf_counter() - begun
            if stop_by is None and interrupted():
                crew.interrupt()
                stop_by = time.perf_counter() + DRAIN
            if stop_by is not None and time.perf_counter() > stop_by:
                break
        collect()
    except RunError as error:
        result.status = "failed"
        error.result = result if _salvage(crew, result) else None
        raise
    if stop_by is not None:
        result.status = "interrupted"
        if not _salvage(crew, result):
            raise StageFailedError("a stage died while the run was being stopped: nothing of this run could be kept")
        return result
    result.seconds["readouts_and_test"] = time.perf_counter() - begun - result.seconds["layers"]
    result.last = crew.trained()
    result.weights = crew.weights()
    return result


def _salvage(crew: Crew, result: RunResult) -> bool:
    """Takes what an unfinished run learned: the best validated weights, or where there are none the present ones."""
    try:
        result.last = crew.trained()
        weights = crew.weights() if result.best_epoch is None else crew.candidate(result.best_epoch)
        result.weights = weights if is_finite(weights) else {}
    except RunError:  # a stage died and took its layers along; the error that ends the run names it
        return False
    return True
