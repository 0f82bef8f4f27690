"""Time to an accuracy: each method's learning curve, measured once by training, on the clock of each row's own steps.

The same bits come from the serial loop and from the pipeline, so their rows share a curve. DDP and backprop in a
pipeline do backprop's arithmetic up to rounding, so they share that of backprop. Steps that a method needs, times the
seconds that a step takes in the row (with the feeder in the loop where the row ran so), is the row's time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from rich.console import Console

from launch.bench.entries import THEIRS
from launch.bench.figures import Figures
from launch.bench.ours import Row, spec_of
from launch.output.console import say
from pipeline.config import build
from pipeline.config.build import build_run
from pipeline.config.devices import Devices, num_cores
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Settings
from pipeline.data.loader import Dataset
from pipeline.kind import Kind
from pipeline.runtime.observer import Observer
from pipeline.runtime.serial import train_serial
from pipeline.telemetry.reports import PassReport
from workers.group import train_ray

CURVE_OF: dict[str, str] = {
    **dict.fromkeys(THEIRS, "backprop"),
    "cff-serial-1": "cff-1",
    "cff-1": "cff-1",
    "cff-serial-2": "cff-2",
    "cff-2": "cff-2",
    "serial": "pipelined",
    "pipelined": "pipelined",
}
"""The learning curve of each row that has one."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """How a method learns.

    Attributes:
        accuracies: validation accuracy after each epoch, of the last layer's readout or of the classifier.
        steps_per_epoch: training steps.
        reached: the first epoch, from 1, with the accuracy that was asked for; None where none had it.
    """

    method: str
    accuracies: tuple[float, ...]
    steps_per_epoch: int
    reached: int | None


@dataclass(frozen=True, kw_only=True)
class TimeTo:
    """A row's time to an accuracy; ``seconds`` is None where its method did not reach it."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("row", "epochs", "steps", "s a step", "time to accuracy")

    row: str
    epochs: int | None
    steps: int | None
    step_seconds: float
    seconds: float | None
    best: float
    tried: int

    def cells(self) -> list[str]:
        if self.seconds is None:
            said = f"not reached in {self.tried} epochs (best {100 * self.best:.2f} %)"
            return [self.row, "", "", f"{self.step_seconds:.3f}", said]
        return [self.row, str(self.epochs), f"{self.steps:,}", f"{self.step_seconds:.3f}", f"{self.seconds:,.0f} s"]


def curves(
    settings: Settings,
    devices: Devices,
    names: Sequence[str],
    rows: Mapping[str, Row],
    *,
    accuracy: float,
    max_epochs: int,
    learned: list[Curve],
    console: Console,
) -> None:
    """Trains each method that a row needs until it has the accuracy, or for so many epochs. Ray must be initialised.

    Args:
        names: of the rows that take part.
        rows: ours, by name.
        accuracy: a share, in (0, 1].
        learned: takes each curve as soon as it is there, so that a stop loses none.
    """
    for method in dict.fromkeys(CURVE_OF[name] for name in names if name in CURVE_OF):
        row = rows.get(method)  # None: backpropagation
        learned.append(_curve(settings, devices, method, row, accuracy, max_epochs, console))


def times_to(rows: Sequence[Figures], learned: Sequence[Curve]) -> list[TimeTo]:
    """Each measured row's time; of a row that ran from both sources that with the feeder counts."""
    by_method = {curve.method: curve for curve in learned}
    fed = {row.name for row in rows if row.source == "feeder" and row.step_seconds is not None}
    times = []
    for row in rows:
        curve = by_method.get(CURVE_OF.get(row.name, ""))
        if curve is None or row.step_seconds is None or (row.source == "memory" and row.name in fed):
            continue
        steps = None if curve.reached is None else curve.reached * curve.steps_per_epoch
        times.append(
            TimeTo(
                row=row.label,
                epochs=curve.reached,
                steps=steps,
                step_seconds=row.step_seconds,
                seconds=None if steps is None else steps * row.step_seconds,
                best=max(curve.accuracies, default=0.0),
                tried=len(curve.accuracies),
            )
        )
    return times


def _curve(
    settings: Settings,
    devices: Devices,
    method: str,
    row: Row | None,
    accuracy: float,
    max_epochs: int,
    console: Console,
) -> Curve:
    settings = replace(settings, train=replace(settings.train, epochs=max_epochs))
    spec, dataset = _backprop(settings, devices) if row is None else _local(settings, devices, row, console)
    until = _UntilAccuracy(spec, method, accuracy, console)
    if spec.settings.pipeline.executor == "ray":
        train_ray(spec, until)
    else:
        train_serial(spec, dataset, until)
    return Curve(
        method=method,
        accuracies=tuple(until.accuracies),
        steps_per_epoch=spec.steps_per_epoch,
        reached=len(until.accuracies) if until.interrupted() else None,
    )


class _UntilAccuracy(Observer):
    """Notes the last layer's validation accuracy after every epoch, and stops the run once it is high enough."""

    def __init__(self, spec: RunSpec, method: str, accuracy: float, console: Console) -> None:
        self._last, self._method, self._accuracy, self._console = spec.num_layers - 1, method, accuracy, console
        self.accuracies: list[float] = []

    def pass_finished(self, report: PassReport) -> None:
        if report.kind is not Kind.VALIDATE or report.layers[-1].layer != self._last or self.interrupted():
            return
        self.accuracies.append(report.layers[-1].accuracy or 0.0)
        said = f"{self._method}: epoch {len(self.accuracies)}, validation accuracy {100 * self.accuracies[-1]:.2f} %"
        say(self._console, said)

    def interrupted(self) -> bool:
        return bool(self.accuracies) and self.accuracies[-1] >= self._accuracy


def _local(settings: Settings, devices: Devices, row: Row, console: Console) -> tuple[RunSpec, Dataset]:
    """The pipelined row's run: the fastest way to its curve."""
    spec = spec_of(row, settings, devices, console)
    return spec, build.open_data(spec.settings)


def _backprop(settings: Settings, devices: Devices) -> tuple[RunSpec, Dataset]:
    """Backpropagation by the serial loop, on all cores where devices are CPU threads."""
    threads = num_cores() if devices.kind == "cpu" else settings.pipeline.threads
    pipe = replace(settings.pipeline, stages="auto", partition="even", executor="serial", threads=threads)
    settings = build.expand_baseline(replace(settings, baseline="bp", pipeline=pipe))
    dataset = build.open_data(settings)
    return build_run(settings, devices, dataset=dataset), dataset
