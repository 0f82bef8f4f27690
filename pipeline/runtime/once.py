"""An observer that hears of each layer's pass once, although parts of a run are done again after a failure."""

from __future__ import annotations

import time
from dataclasses import replace

from pipeline.checkpoints.folder import Manifest
from pipeline.config.run_spec import RunSpec
from pipeline.kind import Kind
from pipeline.layers.state import State
from pipeline.runtime.observer import Observer
from pipeline.runtime.states import RunState
from pipeline.telemetry.reports import PassReport, Status
from pipeline.telemetry.trace import StageTrace, TraceWish


class Once(Observer):
    """Hands everything on, but for reports that came before; they are the same, bit for bit."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._heard: set[tuple[Kind, int, int]] = set()
        self.wants_best = observer.wants_best
        self.began = False
        """Whether any stage has had its first batch."""
        self._statuses: list[Status] = []
        self._failed: float | None = None

    def failed(self) -> None:
        """The run has failed and begins anew: says how long that took once it trains again."""
        self._failed = time.perf_counter()

    def trained_steps(self, spec: RunSpec) -> int:
        """Training steps of the layers that the foremost stage had done when it was seen last."""
        return max((_trained(spec, status) for status in self._statuses if status.kind is not None), default=0)

    def pass_finished(self, report: PassReport) -> None:
        new = [layer for layer in report.layers if (report.kind, report.epoch, layer.layer) not in self._heard]
        self._heard |= {(report.kind, report.epoch, layer.layer) for layer in new}
        if new:
            self._observer.pass_finished(report if len(new) == len(report.layers) else replace(report, layers=new))

    def progressed(self, statuses: list[Status]) -> None:
        trains = any(status.kind is not None for status in statuses)
        self.began = self.began or trains
        if trains and self._failed is not None:
            self._observer.notified(f"The run goes on, {time.perf_counter() - self._failed:.1f} s after the failure.")
            self._failed = None
        self._statuses = statuses
        self._observer.progressed(statuses)

    def improved(self, epoch: int, weights: State) -> None:
        self._observer.improved(epoch, weights)

    def checkpointed(self, manifest: Manifest) -> None:
        self._observer.checkpointed(manifest)

    def asked_to_save(self) -> bool:
        return self._observer.asked_to_save()

    def asked_to_trace(self) -> TraceWish | None:
        return self._observer.asked_to_trace()

    def traced(self, trace: StageTrace) -> None:
        self._observer.traced(trace)

    def interrupted(self) -> bool:
        return self._observer.interrupted()

    def entered(self, state: RunState) -> None:
        self._observer.entered(state)

    def notified(self, sentence: str) -> None:
        self._observer.notified(sentence)

    def noted(self, title: str, text: str) -> None:
        self._observer.noted(title, text)

    def divided(self, spec: RunSpec) -> None:
        self._observer.divided(spec)

    def waits_for(self, what: str) -> None:
        self._observer.waits_for(what)


def _trained(spec: RunSpec, status: Status) -> int:
    if status.kind is Kind.TRAIN:
        return status.epoch * spec.steps_per_epoch + status.step + 1
    epochs = status.epoch + 1 if status.kind is Kind.VALIDATE else spec.epochs
    return epochs * spec.steps_per_epoch
