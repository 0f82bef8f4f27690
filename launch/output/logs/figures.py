"""The figures of a run, each under a name with its place on the one axis that all share: training steps.

A name is ``WHAT/WHOSE``: "utilisation/stage 2", "validate loss/layer 1", "images per second/run". The axis counts the
training steps of the whole run; passes over validation and test images lie at the step that they follow, and the
readouts' steps behind those of the layers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from launch.output.logs.meters import Meter
from pipeline.config.run_spec import RunSpec
from pipeline.kind import Kind
from pipeline.planning.ideal import ideal_speedup
from pipeline.runtime.history import History
from pipeline.runtime.passes import Cut, gone, trained_steps
from pipeline.telemetry.clock import TimeBreakdown, TimeCategory
from pipeline.telemetry.reports import LayerReport, PassReport, Status

OF_LAYERS = ("loss", "accuracy", "top_k", "direct_accuracy", "version_skew", "readout_loss", "fisher")
"""Fields of a layer's report that are figures."""

SHARES = (*(kind.value for kind in TimeCategory if kind is not TimeCategory.BUSY), "other")
"""Where a stage's time goes beside computing, which is "utilisation"."""

LAUNCHING = ("issue ms", "kernel ms")
"""Milliseconds in which a GPU's host issues a step, and in which the GPU computes it; of no CPU."""

_STEPS = ("step ms median", "step ms 99th percentile")

STAGE, LAYER, RUN = "stage", "layer", "run"


@dataclass(frozen=True)
class Figure:
    """A number that belongs to a moment of a run.

    Attributes:
        what: "utilisation", "validate loss".
        whose: "stage 2", "layer 1", "run".
        step: training steps of the run until then.
        at: when that was, in seconds since 1970.
        device: of a stage over the last seconds, what it runs on.
    """

    what: str
    whose: str
    value: float
    step: int
    at: float
    device: str = ""

    @property
    def tag(self) -> str:
        return f"{self.what}/{self.whose}"


@dataclass(frozen=True)
class Charts:
    """What of a run is worth a chart with a line for every stage, and for every layer, in this order."""

    stages: tuple[str, ...]
    layers: tuple[str, ...]

    @classmethod
    def of(cls, spec: RunSpec) -> Charts:
        """The charts that will not stay empty."""
        launching = LAUNCHING if spec.device == "cuda" else ()
        shared, method = spec.shared_versions is not None, spec.settings.method
        shares = [share for share in SHARES if share != TimeCategory.SYNC.value or shared]
        judged = method.predicts() or spec.settings.readout.mode == "online"
        layers = (
            ("train loss", True),
            ("validate loss", True),
            ("validate accuracy", judged),
            ("validate direct_accuracy", method.predicts()),
            ("validate fisher", True),
            *((f"validate {name}", True) for name in method.figures),
            ("train gradient_norm", True),
            ("train weight_norm", True),
            ("train learning_rate", True),
            ("train version_skew", shared),
            ("step loss", True),
        )
        return cls(
            ("utilisation", *shares, "images per second", "queue", "memory MiB", *_STEPS, *launching),
            tuple(name for name, there in layers if there),
        )


class Figures:
    """Makes figures of what a run reports."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec, self._history = spec, History.of(spec)
        self.step = 0
        """The furthest that any figure has come."""
        self._told: dict[int, int] = {}  # how far the figures of each stage have come
        self._begun = 0

    def go_on(self, step: int) -> None:
        """The run goes on from a checkpoint after so many steps: what stages did until then has been told."""
        self._begun = self.step = step

    def divide(self, spec: RunSpec) -> None:
        """The run goes on in the stages of ``spec``."""
        self._spec, self._told = spec, {}

    def of_report(self, report: PassReport) -> list[Figure]:
        """Of a finished pass of one stage; and of the whole run's, once every stage has finished an epoch."""
        self._history.add(report)
        found = [figure for layer in report.layers for figure in self._of_layer(report, layer)]
        if report.kind is Kind.TRAIN:
            found += self._of_steps(report)
        if report.kind is Kind.VALIDATE:
            found += self._of_epoch(report)
        return self._noted(found)

    def of_statuses(self, statuses: Sequence[Status], meters: Sequence[Meter]) -> list[Figure]:
        """Of every stage, over the last seconds. While a stage does again what it had done before a failure: none."""
        at = time.time()
        found = []
        for status, meter in zip(statuses, meters, strict=True):
            step, whose = step_of(self._spec, status), f"{STAGE} {status.stage + 1}"
            if step <= self._told.get(status.stage, self._begun) or meter.account is None:
                continue
            self._told[status.stage] = step
            values = {
                "utilisation": meter.utilisation,
                **meter.shares,
                **launching_of(meter.account),
                "queue": float(status.waiting),
                "images per second": meter.images_per_second,
                "memory MiB": status.memory / 2**20,
            }
            found += [Figure(what, whose, value, step, at, status.device) for what, value in values.items()]
        return self._noted(found)

    def _noted(self, figures: list[Figure]) -> list[Figure]:
        self.step = max([self.step, *(figure.step for figure in figures)])
        return figures

    def _of_layer(self, report: PassReport, layer: LayerReport) -> Iterator[Figure]:
        whose, name = f"{LAYER} {layer.layer + 1}", report.kind.name.lower()
        step, at = end_of(self._spec, report.kind, report.epoch), _ended(report)
        for what, value in {**figures_of(layer), **layer.vitals}.items():
            yield Figure(f"{name} {what}", whose, value, step, at)
        if report.kind is Kind.TRAIN:
            ended = _times(report, len(layer.losses))
            for number, (loss, moment) in enumerate(zip(layer.losses, ended, strict=True), start=1):
                yield Figure("step loss", whose, float(loss), step - len(layer.losses) + number, float(moment))

    def _of_steps(self, report: PassReport) -> Iterator[Figure]:
        """How long a stage's steps took, from the end of one to the end of the next."""
        if report.steps is None or len(report.steps.ended) < 2:
            return
        took = np.diff(report.steps.ended) * 1000
        whose, step = f"{STAGE} {report.stage + 1}", end_of(self._spec, report.kind, report.epoch)
        for what, percentile in zip(_STEPS, (50, 99), strict=True):
            yield Figure(what, whose, float(np.percentile(took, percentile)), step, _ended(report))

    def _of_epoch(self, report: PassReport) -> Iterator[Figure]:
        if self._history.layers(Kind.VALIDATE, report.epoch) is None:
            return
        accounts = self._history.accounts(Kind.TRAIN, Kind.VALIDATE, epochs=(report.epoch,))
        speed = speed_of(list(accounts.values()))
        if speed is None:
            return
        steps = max(
            (len(layer.losses) for layer in self._history.layers(Kind.TRAIN, report.epoch) or ()), default=0
        )  # those of this part of the run are not told apart: a first epoch that was resumed looks faster than it was
        values = {
            "epoch seconds": speed.seconds,
            "images per second": steps * self._spec.settings.train.batch_size / speed.seconds,
            "measured speed-up": speed.measured,
            "ideal speed-up": speed.ideal,
        }
        step, at = end_of(self._spec, report.kind, report.epoch), _ended(report)
        for what, value in values.items():
            yield Figure(what, RUN, value, step, at)


def step_of(spec: RunSpec, status: Status) -> int:
    """Training steps of the run that a stage has done."""
    if status.kind is None:
        return 0
    if status.kind in (Kind.TRAIN, Kind.READOUT):
        return status.epoch * spec.steps_per_epoch + status.step + 1
    return end_of(spec, status.kind, status.epoch)


def end_of(spec: RunSpec, kind: Kind, epoch: int) -> int:
    """Training steps of the run until the end of a pass."""
    if kind is Kind.TEST:
        readout = spec.settings.readout
        epoch = spec.epochs - 1 + (readout.readout_epochs if readout.mode == "after" else 0)
    return (epoch + 1) * spec.steps_per_epoch


def steps_at(spec: RunSpec, cut: Cut) -> int:
    """Training steps of the run before a cut, the readouts' among them."""
    readouts = [one for one in gone(spec, cut) if one.kind is Kind.READOUT]
    steps = cut.steps if len(cut.restored) == len(spec.phases) else 0
    return trained_steps(spec, cut) + len(readouts) * spec.steps_per_epoch + steps


@dataclass(frozen=True)
class Speed:
    """How fast an epoch was: its wall seconds, and the speed-ups as of docs/architecture.md, fill apart."""

    seconds: float
    measured: float
    ideal: float


def speed_of(accounts: Sequence[TimeBreakdown]) -> Speed | None:
    """Of the same stretch of every stage; None where no time passed."""
    busy = [account.seconds[TimeCategory.BUSY] for account in accounts]
    seconds = max((account.wall for account in accounts), default=0.0)
    if seconds <= 0 or max(busy) <= 0:
        return None
    return Speed(seconds, sum(busy) / seconds, ideal_speedup([busy], 0.0))


def launching_of(account: TimeBreakdown) -> dict[str, float]:
    """A GPU's figures of ``LAUNCHING``, once a step has told them."""
    values = (account.launching.issue_ms, account.launching.kernel_ms)
    return {name: value for name, value in zip(LAUNCHING, values, strict=True) if value is not None}


def figures_of(layer: LayerReport) -> dict[str, float]:
    """A layer's figures that are numbers."""
    values = {name: getattr(layer, name) for name in OF_LAYERS}
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


def _ended(report: PassReport) -> float:
    """When a pass ended, in seconds since 1970; now, where the stage does not tell."""
    if report.steps is not None and len(report.steps.ended):
        return float(report.steps.ended[-1])
    return time.time()


def _times(report: PassReport, count: int) -> Sequence[float]:
    """When each of the last ``count`` steps ended."""
    if report.steps is not None and len(report.steps.ended) >= count:
        ended: list[float] = report.steps.ended[len(report.steps.ended) - count :].tolist()
        return ended
    return [_ended(report)] * count
