"""What a person sees of a run: a live table on a terminal, plain lines elsewhere, and its result at the end."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.spinner import Spinner
from rich.table import Table

from pipeline.history import History
from pipeline.messages import Kind
from pipeline.metrics import PassReport, Status
from pipeline.spec import RunSpec

_WINDOW = 3.0  # seconds over which speed and utilisation are averaged
_PLAIN_EVERY = 10.0  # seconds between lines within an epoch, where there is no terminal


class Display:
    """Shows a run's progress. A context manager around the run."""

    def __init__(self, spec: RunSpec, num_batches: int, console: Console) -> None:
        self._spec, self._num_batches, self._console = spec, num_batches, console
        self._history = History(spec.num_layers)
        self._meters = [_Meter() for _ in range(spec.num_stages)]
        self._statuses: list[Status] = []
        self._begun = time.perf_counter()
        self._last_line = self._begun
        settings = spec.settings
        readouts = settings.head.head_epochs if settings.head.mode == "after" else 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs, left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._layers_task = self._progress.add_task("layers  ", total=settings.train.epochs)
        self._readouts_task = self._progress.add_task("readouts", total=readouts, visible=bool(readouts), start=False)
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
            stages = f"{self._spec.num_stages} stage{'s' if self._spec.num_stages > 1 else ''}"
            self._live.update(Spinner("dots", text=f"starting {stages}"), refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def has_reports(self) -> bool:
        """Whether the run has come as far as the end of a pass."""
        return bool(self._history.epochs(Kind.TRAIN))

    @property
    def utilisation(self) -> list[float]:
        """Of each stage, over the last seconds."""
        return [meter.utilisation for meter in self._meters]

    def follow(self, statuses: list[Status]) -> None:
        """Takes where the stages are."""
        if not statuses:
            return
        if not self._statuses:
            self._begun = time.perf_counter()  # start-up does not count into the time left
        self._statuses = statuses
        for status, meter in zip(statuses, self._meters, strict=True):
            meter.add(status)
        first = statuses[0]
        if first.kind == Kind.TRAIN.name:
            self._progress.update(self._layers_task, completed=first.epoch + (first.step + 1) / self._num_batches)
        elif first.kind == Kind.READOUT.name:
            self._progress.start_task(self._readouts_task)
            done = first.epoch - self._spec.settings.train.epochs + (first.step + 1) / self._num_batches
            self._progress.update(self._layers_task, completed=self._spec.settings.train.epochs)
            self._progress.update(self._readouts_task, completed=done)
        if self._live is not None:
            self._live.update(self._picture())
        elif (
            time.perf_counter() - self._last_line > _PLAIN_EVERY
            and first.kind == Kind.TRAIN.name
            and self._meters[0].images_per_second
        ):
            self.say(f"{self._place(first)}: {self._rates()}")

    def observe(self, report: PassReport) -> None:
        """Takes a pass's report; says a line once an epoch is complete in every layer."""
        self._history.add(report)
        kind = Kind[report.kind]
        layers = self._history.layers(kind, report.epoch)
        if self._live is not None or layers is None or kind is Kind.TRAIN or report.stage != self._spec.num_stages - 1:
            return
        settings = self._spec.settings
        if kind is Kind.VALIDATE:
            trained = self._history.layers(Kind.TRAIN, report.epoch) or []
            accuracy = "".join(f" {layer.accuracy:.1%}" for layer in layers if layer.accuracy is not None)
            self.say(
                f"epoch {report.epoch + 1}/{settings.train.epochs}: "
                f"loss{_numbers([layer.loss for layer in trained])}, "
                f"validation{_numbers([layer.loss for layer in layers])}{', accuracy' + accuracy if accuracy else ''}, "
                f"{self._epoch_rates(report.epoch)}, left {self._left(report.epoch + 1)}"
            )
        elif kind is Kind.READOUT:
            number = report.epoch - settings.train.epochs + 1
            self.say(
                f"readouts, epoch {number}/{settings.head.head_epochs}: "
                f"cross-entropy{_numbers([layer.loss for layer in layers if not math.isnan(layer.loss)])}"
            )

    def say(self, text: str) -> None:
        """A sentence for the person, above the table if there is one."""
        self._last_line = time.perf_counter()
        self._console.print(text, highlight=False, soft_wrap=True)

    def _place(self, status: Status) -> str:
        return f"epoch {status.epoch + 1}, step {status.step + 1}/{self._num_batches}"

    def _rates(self) -> str:
        used = " ".join(f"{meter.utilisation:.0%}" for meter in self._meters)
        return f"{self._meters[0].images_per_second:,.0f} images/s, utilisation {used}"

    def _epoch_rates(self, epoch: int) -> str:
        """As ``_rates``, over an epoch with its validation."""
        accounts = self._history.accounts(Kind.TRAIN, Kind.VALIDATE, epoch=epoch)
        stages = [accounts[stage] for stage in range(self._spec.num_stages)]
        images = self._num_batches * self._spec.settings.train.batch_size
        used = " ".join(f"{account.utilisation:.0%}" for account in stages)
        return f"{images / stages[0].wall:,.0f} images/s, utilisation {used}"

    def _left(self, done: int) -> str:
        elapsed = time.perf_counter() - self._begun
        return duration(elapsed / done * (self._spec.settings.train.epochs - done))

    def _picture(self) -> RenderableType:
        table = Table(title=f"{self._spec.settings.preset} on {self._spec.data_name}", title_justify="left")
        for heading in ("stage", "layers", "device", "images/s", "utilisation", "queue", "loss"):
            table.add_column(heading, justify="left" if heading in ("device", "loss") else "right")
        for status, meter in zip(self._statuses, self._meters, strict=True):
            layers = self._spec.stages[status.stage]
            table.add_row(
                str(status.stage + 1),
                f"{layers[0] + 1}–{layers[-1] + 1}" if len(layers) > 1 else str(layers[0] + 1),
                status.device,
                f"{meter.images_per_second:,.0f}",
                f"{meter.utilisation:.0%}",
                f"{status.waiting}/{self._spec.settings.pipeline.queue_depth}",
                "  ".join(f"{loss:.3f}" for loss in status.losses if not math.isnan(loss)),
            )
        return Group(table, self._progress)


class _Meter:
    """Speed and utilisation of a stage over a sliding window."""

    def __init__(self) -> None:
        self._seen: deque[Status] = deque()

    def add(self, status: Status) -> None:
        if not status.kind:  # its clock starts anew with its first batch
            return
        if self._seen and status.account.wall < self._seen[-1].account.wall:
            self._seen.clear()
        self._seen.append(status)
        while len(self._seen) > 2 and status.account.wall - self._seen[1].account.wall > _WINDOW:
            self._seen.popleft()

    @property
    def images_per_second(self) -> float:
        wall = self._wall()
        return (self._seen[-1].images - self._seen[0].images) / wall if wall > 0 else 0.0

    @property
    def utilisation(self) -> float:
        return (self._seen[-1].account - self._seen[0].account).utilisation if self._wall() > 0 else 0.0

    def _wall(self) -> float:
        return self._seen[-1].account.wall - self._seen[0].account.wall if len(self._seen) > 1 else 0.0


def print_summary(console: Console, summary: dict[str, Any], folder: str) -> None:
    """The end of a run, for a person."""
    console.print()
    data, best = summary["data"], summary["best_epoch"] or "–"
    console.print(
        f"{summary['status']}: {summary['net']} on {data['name']} ({data['train']:,} training, {data['validate']:,} "
        f"validation, {data['test']:,} test images), {summary['epochs_finished']} epochs, best {best}",
        highlight=False,
        soft_wrap=True,
    )
    top_k = summary["top_k"]
    table = Table(show_edge=False, pad_edge=False)
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("layer", lambda layer: str(layer["layer"])),
        ("test accuracy", lambda layer: _percent(layer["test_accuracy"])),
    ]
    if top_k > 1:
        columns.append((f"top-{top_k}", lambda layer: _percent(layer["test_top_k"])))
    if any(layer["test_direct_accuracy"] != layer["test_accuracy"] for layer in summary["layers"] if _direct(layer)):
        columns.append(("without readout", lambda layer: _percent(layer["test_direct_accuracy"])))
    columns.append(("Fisher criterion", lambda layer: _number(layer["test_fisher"], 1)))
    columns.append(("validation loss", lambda layer: _number(layer["validation_loss"], 3)))
    for heading, _ in columns:
        table.add_column(heading, justify="right")
    for layer in summary["layers"]:
        table.add_row(*(cell(layer) for _, cell in columns))
    console.print(table)
    speed = summary["speed"]
    if speed is not None:
        console.print(
            f"speed: {speed['images_per_second']:,.0f} images/s; speed-up {speed['measured_speedup']:.2f}× measured, "
            f"{speed['ideal_speedup']:.2f}× ideal for {summary['stages']} stage{'s' if summary['stages'] > 1 else ''}"
            f"{' that share fewer cores, so their computing time has waiting in it' if speed['cores_shared'] else ''}",
            highlight=False,
            soft_wrap=True,
        )
        for stage in speed["stages"]:
            shares = ", ".join(
                f"{name.replace('_', '-')} {stage[name] / stage['wall']:.1%}"
                for name in ("busy", "wait_in", "wait_out", "copy", "sync", "other")
            )
            console.print(f"  stage {stage['stage']} ({stage['device']}): {shares}", highlight=False, soft_wrap=True)
    if summary["test_accuracy"] is not None:
        also = f", top-{top_k} {_percent(summary['test_top_k'])}" if top_k > 1 else ""
        console.print(f"[bold]test accuracy {_percent(summary['test_accuracy'])}[/bold]{also}", highlight=False)
    else:
        console.print("No test accuracy: the run ended before its readouts were trained.", highlight=False)
    console.print(f"run folder: {folder}", highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def warn(text: str) -> None:
    """A sentence that a person should see even where output is piped away."""
    print(f"warning: {text}", file=sys.stderr)


def _direct(layer: dict[str, Any]) -> bool:
    return layer["test_direct_accuracy"] is not None


def _numbers(values: list[float]) -> str:
    return "".join(f" {value:.3f}" for value in values)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
