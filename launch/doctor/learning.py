"""`launch doctor learning PRESET`: after how many seconds a run's validation accuracy reaches what was asked for.

The run is the preset's own with the flags that are given, and stops at the highest accuracy or when its time is over.
The clock begins with the run and includes its start, apart from Ray's own; validation is included too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from launch.bench.arguments import output_folder
from launch.command_line.parse import FIRST, parse, preset_and_default, shortened, unknown
from launch.output.console import counted, say
from launch.output.progress import ProgressLine
from launch.output.run_folder import command_line
from launch.output.summary import machine
from launch.presets import PRESETS
from pipeline.config import build, checks
from pipeline.config import settings as settings_module
from pipeline.config.build import build_run, expand_baseline
from pipeline.config.devices import local_devices
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Settings
from pipeline.data.loader import Dataset
from pipeline.errors import UserError
from pipeline.kind import Kind
from pipeline.runtime.here import train_here
from pipeline.runtime.observer import Observer
from pipeline.telemetry.reports import PassReport
from workers.cluster import ray_cluster
from workers.group import train_ray


@dataclass(frozen=True, kw_only=True)
class LearningArguments:
    """A run, how long it may take, and what it is to reach."""

    run: Settings
    seconds: float = 200.0
    """Seconds of training at most."""
    targets: tuple[float, ...] = (80.0, 90.0)
    """Validation accuracies in per cent whose times are noted."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """New folder for learning.json. Default: runs/doctor-learning-DATE-TIME."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """After an epoch, from 1: seconds since the run began, and the last layer's validation accuracy, a share."""

    epoch: int
    seconds: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Reached:
    """A target, a share, and the first point that has it; None where none has."""

    target: float
    seconds: float | None
    epoch: int | None


def learning(arguments: list[str], console: Console) -> None:
    """Runs `launch doctor learning` with these arguments. The curve is written after every epoch.

    Raises:
        UserError: a mistake in what was asked.
        RunError: the run failed; what it learned until then is written.
    """
    asked = _parse(arguments)
    settings = _predicting(expand_baseline(shortened(asked.run)))
    checks.check(settings)
    with ProgressLine(console) as line:
        dataset = build.open_data(settings, progress=line.report)
    folder = output_folder(asked.out, "doctor-learning", run_dir=asked.run.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    pipe = settings.pipeline
    here = pipe.executor != "ray"
    with nullcontext(local_devices(pipe.device, pipe.threads)) if here else ray_cluster(settings) as devices:
        spec = build_run(settings, devices, dataset=dataset)

        def write(points: Sequence[Point]) -> None:
            _write(folder, asked, spec, points)
            if points:
                said = f"epoch {points[-1].epoch}, {points[-1].seconds:,.0f} s"
                say(console, f"{said}: validation accuracy {100 * points[-1].accuracy:.2f} %")

        clock = LearningClock(spec, asked.seconds, [target / 100 for target in asked.targets], write)
        write(clock.points)
        _train(spec, dataset, clock)
    for one in reached(clock.points, clock.targets):
        say(console, sentence(one, clock.points))
    say(console, f"report: {folder}")


def reached(points: Sequence[Point], targets: Sequence[float]) -> list[Reached]:
    """When each target, a share, was first reached."""
    found = []
    for target in sorted(targets):
        first = next((point for point in points if point.accuracy >= target), None)
        found.append(
            Reached(
                target=target,
                seconds=None if first is None else first.seconds,
                epoch=None if first is None else first.epoch,
            )
        )
    return found


def sentence(one: Reached, points: Sequence[Point]) -> str:
    """When a target was reached, or how near the run came."""
    if one.seconds is not None:
        return f"{100 * one.target:g} %: after {one.seconds:,.0f} s, in epoch {one.epoch}"
    if not points:
        return f"{100 * one.target:g} %: no epoch was finished"
    best = max(points, key=lambda point: point.accuracy)
    return (
        f"{100 * one.target:g} %: not reached in {points[-1].seconds:,.0f} s, {counted(points[-1].epoch, 'epoch')}; "
        f"best {100 * best.accuracy:.2f} %"
    )


class LearningClock(Observer):
    """Notes the last layer's accuracy and the time after every epoch, and stops the run when there is enough.

    Args:
        targets: shares.
        write: called with all points after each one.
        now: seconds on any clock.
    """

    def __init__(
        self,
        spec: RunSpec,
        seconds: float,
        targets: Sequence[float],
        write: Callable[[Sequence[Point]], None],
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.targets, self.points = tuple(targets), list[Point]()
        self._last, self._limit, self._write, self._now = spec.num_layers - 1, seconds, write, now
        self._began = now()

    def pass_finished(self, report: PassReport) -> None:
        last = report.layers[-1]
        if report.kind is not Kind.VALIDATE or last.layer != self._last or self._enough():
            return
        accuracy = last.accuracy if last.accuracy is not None else last.direct_accuracy
        point = Point(epoch=report.epoch + 1, seconds=self._now() - self._began, accuracy=accuracy or 0.0)
        self.points.append(point)
        self._write(self.points)

    def interrupted(self) -> bool:
        return self._enough() or self._now() - self._began >= self._limit

    def _enough(self) -> bool:
        return any(point.accuracy >= max(self.targets) for point in self.points)


def _parse(arguments: list[str]) -> LearningArguments:
    name = arguments[0] if arguments else ""
    if name.startswith("-"):
        name, arguments = "cff-vit", ["cff-vit", *arguments]  # for --help
    if name not in PRESETS:
        raise UserError(f"launch doctor learning needs a preset first: {unknown(name, PRESETS, 'preset')}")
    _, default, rest = preset_and_default(name, arguments[1:])
    asked = parse(
        LearningArguments,
        rest,
        command=f"launch doctor learning {name}",
        default=LearningArguments(run=default),
        about="After how many seconds a run's validation accuracy reaches --targets.",
        first=("seconds", "targets", "out", *FIRST),
    )
    if not asked.seconds > 0:
        raise UserError(f"--seconds {asked.seconds:g}: must be above 0.")
    if not asked.targets or not all(0 < target <= 100 for target in asked.targets):
        given = " ".join(f"{target:g}" for target in asked.targets)
        raise UserError(f"--targets {given}: give at least one, in per cent, above 0 and up to 100.")
    return asked


def _predicting(settings: Settings) -> Settings:
    """Settings under which the last layer predicts while it learns, as a readout afterwards would come too late."""
    if settings.readout.mode != "after":
        return settings
    return replace(settings, readout=replace(settings.readout, mode="online", readout_layers="last"))


def _train(spec: RunSpec, dataset: Dataset, clock: LearningClock) -> None:
    if spec.settings.pipeline.executor == "ray":
        train_ray(spec, clock)
    else:
        train_here(spec, dataset, clock)


def _write(folder: Path, asked: LearningArguments, spec: RunSpec, points: Sequence[Point]) -> None:
    targets = [target / 100 for target in asked.targets]
    values: dict[str, Any] = {
        "format": 1,
        "command": command_line(),
        "preset": spec.settings.preset,
        "learning": "backprop" if asked.run.baseline else spec.settings.method.kind,
        "net": spec.net.describe(),
        "data": spec.data_name,
        "stages": spec.num_stages,
        "settings": settings_module.to_dict(spec.settings),
        "machine": machine(),
        "seconds_at_most": asked.seconds,
        "points": [asdict(point) for point in points],
        "reached": [asdict(one) for one in reached(points, targets)],
    }
    (folder / "learning.json").write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
