"""An observer that hears of each layer's pass once, although parts of a run are done again after a failure."""

from __future__ import annotations

from dataclasses import replace

from pipeline.checkpoints.folder import Manifest
from pipeline.kind import Kind
from pipeline.layers.layer import State
from pipeline.runtime.observer import Observer
from pipeline.telemetry.reports import PassReport, Status


class Once(Observer):
    """Hands everything on, but for reports that came before; they are the same, bit for bit."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._heard: set[tuple[Kind, int, int]] = set()
        self.wants_best = observer.wants_best
        self.began = False
        """Whether any stage has had its first batch."""

    def pass_finished(self, report: PassReport) -> None:
        new = [layer for layer in report.layers if (report.kind, report.epoch, layer.layer) not in self._heard]
        self._heard |= {(report.kind, report.epoch, layer.layer) for layer in new}
        if new:
            self._observer.pass_finished(report if len(new) == len(report.layers) else replace(report, layers=new))

    def progressed(self, statuses: list[Status]) -> None:
        self.began = self.began or any(status.kind is not None for status in statuses)
        self._observer.progressed(statuses)

    def improved(self, epoch: int, weights: State) -> None:
        self._observer.improved(epoch, weights)

    def checkpointed(self, manifest: Manifest) -> None:
        self._observer.checkpointed(manifest)

    def asked_to_save(self) -> bool:
        return self._observer.asked_to_save()

    def interrupted(self) -> bool:
        return self._observer.interrupted()

    def notified(self, sentence: str) -> None:
        self._observer.notified(sentence)

    def waits_for(self, what: str) -> None:
        self._observer.waits_for(what)
