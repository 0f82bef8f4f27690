"""`launch PRESET`: a run from its settings to its folder."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import ExitStack
from types import FrameType
from typing import Self

from rich.console import Console

from launch.data import ProgressLine, unreadable
from launch.display import Display, print_summary, warn
from launch.plan_profile import settle_partition
from launch.runfolder import RunFolder, command_line, new_path
from launch.summary import summarise
from pipeline import local, reference, resolve
from pipeline.data.loader import Dataset
from pipeline.errors import RunError
from pipeline.history import RunResult
from pipeline.metrics import PassReport, Status
from pipeline.settings import Settings
from pipeline.spec import RunSpec
from workers import crew
from workers.cluster import ray_cluster

INTERRUPTED = 130
"""Exit status of a run that was stopped by hand, as shells have it."""


def train(settings: Settings, console: Console) -> int:
    """Runs the settings; prints progress and result. Returns the exit status.

    Raises:
        UserError: before anything has started.
        RunError: the run failed; what was learned is in its folder.
    """
    started, begun = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.perf_counter()
    settings = resolve.settle_baseline(settings)
    resolve.check(settings)
    path = new_path(settings.run_dir, settings.preset)
    with ProgressLine(console) as line:
        dataset = resolve.open_data(settings, progress=line.report)
    if dataset.index.skipped:
        warn(unreadable(dataset.index))
    for sentence in dataset.skipped:
        warn(sentence)
    settings = resolve.resolve(settings, dataset)

    with ExitStack() as stack:
        interrupts = stack.enter_context(_Interrupts())
        pipe = settings.pipeline
        if pipe.executor == "ray":
            devices = stack.enter_context(ray_cluster(settings))
        else:
            devices = resolve.local_devices(pipe.device, pipe.threads)
        settings = settle_partition(settings, dataset, devices, console)
        spec = resolve.place(settings, dataset, devices)
        if pipe.executor == "threads" and devices.kind == "cpu" and spec.num_stages > devices.count:
            warn(f"{spec.num_stages} stages share {devices.count} devices: they will take turns.")
        folder = RunFolder(spec, path, warn=warn)
        _announce(console, spec, dataset)
        display = stack.enter_context(Display(spec, dataset.num_batches("train", settings.train.batch_size), console))

        failure: RunError | None = None
        try:
            interrupts.begun = True
            result = _run(spec, dataset, folder, display, interrupts.asked)
        except RunError as error:
            failure, kept = error, error.result
            if kept is None:
                if display.has_reports:
                    folder.draw()
                else:
                    folder.discard()
                raise
            result = kept
        except KeyboardInterrupt:
            if not display.has_reports:
                folder.discard()
            raise
        summary = summarise(
            spec,
            dataset,
            result,
            command=command_line(),
            started=started,
            seconds=time.perf_counter() - begun,
        )
        place = folder.finish(result, summary)
    print_summary(console, summary, str(place))
    if failure is not None:
        raise failure
    return INTERRUPTED if result.status == "interrupted" else 0


def _run(
    spec: RunSpec, dataset: Dataset, folder: RunFolder, display: Display, interrupted: threading.Event
) -> RunResult:
    last_look = 0.0

    def observe(report: PassReport) -> None:
        folder.observe(report)
        display.observe(report)

    def follow(statuses: list[Status]) -> None:
        nonlocal last_look
        if statuses and time.perf_counter() - last_look >= spec.settings.log_every:
            last_look = time.perf_counter()
            display.follow(statuses)
            folder.follow(statuses, display.utilisation)

    match spec.settings.pipeline.executor:
        case "serial":
            return reference.train(spec, dataset, observe=observe, follow=follow, interrupted=interrupted.is_set)
        case "threads":
            return local.train(spec, dataset, observe=observe, follow=follow, interrupted=interrupted.is_set)
        case "ray":
            return crew.train(spec, observe=observe, follow=follow, interrupted=interrupted.is_set, notify=display.say)


class _Interrupts:
    """Ctrl-C and SIGTERM while a run goes on. A context manager.

    Before the run has begun there is nothing to keep: it stops at once. After that the first one asks the run to stop
    and keep what it learned, the second one stops at once.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.begun = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked.is_set() or not self.begun:
            raise KeyboardInterrupt
        self.asked.set()


def _announce(console: Console, spec: RunSpec, dataset: Dataset) -> None:
    settings = spec.settings
    stages = " | ".join(",".join(str(layer + 1) for layer in layers) for layers in spec.stages)
    console.print(
        f"{settings.preset}: {spec.net.describe()} on {spec.data_name}, {dataset.count('train'):,} training "
        f"images, {len(spec.classes)} classes; {settings.train.epochs} epochs, batches of {settings.train.batch_size}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"{spec.num_stages} stage{'s' if spec.num_stages > 1 else ''} on {spec.device} "
        f"({settings.pipeline.executor}), layers {stages}",
        highlight=False,
        soft_wrap=True,
    )
