"""What a person sees of a run: a live table on a terminal, plain lines elsewhere, and its result at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.spinner import Spinner

from launch.output import live
from launch.output.announce import BY_TEST
from launch.output.console import counted, say
from launch.output.layer_table import LayerRow, accuracy_sentence, percent, print_layers
from launch.output.live import Now
from launch.output.logs.figures import SHARES, step_of
from launch.output.logs.meters import InputMeter, Meter
from launch.output.run_folder import MODEL
from launch.output.summary import limit_of
from pipeline.checkpoints.folder import Manifest
from pipeline.config.run_spec import RunSpec
from pipeline.kind import Kind
from pipeline.planning.limits import Verdict
from pipeline.runtime.history import History
from pipeline.telemetry.reports import PassReport, Status

_PLAIN_EVERY = 10.0  # seconds between lines within an epoch, where there is no terminal

_SETTLED = 20.0  # seconds of training after which shares of time say something of the run


class Display:
    """Shows a run's progress. A context manager around the run.

    Args:
        num_images: that an epoch trains on.
        began: when the command was typed, in seconds since 1970.
        verbose: whether to say where workers are and how long each part of the start took.
        named: replaces the settings that a sentence names by what a person types.
        joined: whether the run is on a cluster that it has joined.
    """

    def __init__(
        self,
        spec: RunSpec,
        num_images: int,
        console: Console,
        *,
        began: float,
        verbose: bool = False,
        named: Callable[[str], str] = str,
        joined: bool = False,
    ) -> None:
        self._named = named
        self._warned = False
        self.hint = ""
        """What limits the run, where much could be done about it and it has been said."""
        self._input = InputMeter()
        self._spec, self._num_batches, self._console = spec, spec.steps_per_epoch, console
        self._num_images, self._joined = num_images, joined
        self._start = _Start(began) if verbose else None
        self._history = History(spec.num_layers)
        self._steps: dict[int, int] = {}  # of an epoch, as far as they were trained in this part of the run
        self._begun_at = 0.0  # epochs that were done when this part of the run began
        self._meters = [Meter() for _ in range(spec.num_stages)]
        self._statuses: list[Status] = []  # since the run was divided into its present stages
        self._begun_once = False
        self._begun = time.perf_counter()
        self._last_line = self._begun
        settings = spec.settings
        readouts = settings.readout.readout_epochs if settings.readout.mode == "after" else 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs, left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._layers_task = self._progress.add_task("layers  ", total=spec.epochs)
        self._readouts_task = self._progress.add_task("readouts", total=readouts, visible=bool(readouts), start=False)
        self._live = (
            Live(console=console, refresh_per_second=4, transient=True)
            if console.is_terminal or console.is_jupyter
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        if self._spec.settings.pipeline.executor != "ray":
            self.wait_for("the first batch")
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def has_reports(self) -> bool:
        """Whether the run has come as far as the end of a pass."""
        return bool(self._history.epochs(Kind.TRAIN))

    @property
    def meters(self) -> Sequence[Meter]:
        """Of each stage, over the last seconds."""
        return self._meters

    @property
    def reading(self) -> float | None:
        """The share of the layers' training in which the busiest feeder read; None where there is none."""
        return self._input.overall

    def divide(self, spec: RunSpec) -> None:
        """The run goes on in the stages of ``spec``."""
        self._spec = spec
        self._meters = [Meter() for _ in range(spec.num_stages)]
        self._statuses = []

    def wait_for(self, what: str) -> None:
        """Says what the run waits for before its first batch."""
        if self._start is not None:
            self._start.next(what)
        if self._live is not None:
            self._live.update(Spinner("dots", text=f"{what} …"), refresh=True)
        else:
            self.say(f"{what} …")

    def _begin(self, statuses: list[Status]) -> None:
        """The first training batch has come: says how long it took, and with ``verbose`` where the time went."""
        if self._start is None:
            return
        for sentence in self._start.finish(statuses[0].account.wall):
            self.say(sentence)
        for status in statuses:
            layers = self._spec.stages[status.stage]
            images = f", with all images ({self._spec.image_bytes / 2**20:,.1f} MiB)" if status.keeps_images else ""
            self.say(f"  stage {status.stage + 1}, {_layers(layers)}: {status.device}{images}")

    def follow(self, statuses: list[Status]) -> None:
        """Takes where the stages are."""
        if not statuses or not statuses[0].kind:
            return
        if not self._statuses:
            self._begun = time.perf_counter()  # start-up does not count into the time left
            if statuses[0].kind is Kind.TRAIN:
                self._begun_at = statuses[0].epoch + statuses[0].step / self._num_batches
            if not self._begun_once:
                self._begin(statuses)
            self._begun_once = True
        self._statuses = statuses
        for status, meter in zip(statuses, self._meters, strict=True):
            meter.add(status)
        first = statuses[0]
        if first.kind in (Kind.TRAIN, Kind.VALIDATE):
            self._input.add(first.feeders)
        if first.kind is Kind.TRAIN:
            self._warn_once()
            self._progress.update(self._layers_task, completed=first.epoch + (first.step + 1) / self._num_batches)
        elif first.kind is Kind.READOUT:
            self._progress.start_task(self._readouts_task)
            done = first.epoch - self._spec.epochs + (first.step + 1) / self._num_batches
            self._progress.update(self._layers_task, completed=self._spec.epochs)
            self._progress.update(self._readouts_task, completed=done)
        if self._live is not None:
            self._live.update(self._picture())
        elif (
            time.perf_counter() - self._last_line > _PLAIN_EVERY
            and first.kind is Kind.TRAIN
            and self._meters[0].images_per_second
        ):
            self.say(f"{self._where(first)}: {self._rates()}")

    def observe(self, report: PassReport) -> None:
        """Takes a pass's report; says a line once an epoch is complete in every layer."""
        self._history.add(report)
        kind = report.kind
        if report.stage == 0 and report.steps is not None:
            self._steps[report.epoch] = len(report.steps.ended)
        layers = self._history.layers(kind, report.epoch)
        # The stage whose report comes last completes the epoch; that need not be the last stage.
        if self._live is not None or layers is None or kind is Kind.TRAIN:
            return
        settings = self._spec.settings
        if kind is Kind.VALIDATE:
            trained = self._history.layers(Kind.TRAIN, report.epoch) or []
            accuracy = "".join(f" {layer.accuracy:.1%}" for layer in layers if layer.accuracy is not None)
            phase = self._spec.phase_of(report.epoch)
            learning = f" ({_layers(phase.layers)})" if len(self._spec.phases) > 1 else ""
            self.say(
                f"epoch {report.epoch + 1}/{self._spec.epochs}{learning}: "
                f"loss{_numbers([layer.loss for layer in trained])}, "
                f"validation{_numbers([layer.loss for layer in layers])}{', accuracy' + accuracy if accuracy else ''}, "
                f"{self._epoch_rates(report.epoch)}, left {self._left(report.epoch + 1)}"
            )
        elif kind in (Kind.READOUT, Kind.JUDGE):
            number = report.epoch - self._spec.epochs + 1
            losses = [layer.loss if kind is Kind.READOUT else layer.readout_loss for layer in layers]
            self.say(
                f"readouts, epoch {number}/{settings.readout.readout_epochs}: "
                f"{'cross-entropy' if kind is Kind.READOUT else 'validation'}"
                f"{_numbers([loss for loss in losses if loss is not None and not math.isnan(loss)])}"
            )

    def checkpointed(self, manifest: Manifest) -> None:
        """A checkpoint is whole."""
        if self._start is not None:
            self.say(f"checkpoint: {manifest.facts['where']} ({manifest.size / 2**20:,.1f} MiB)")

    def say(self, text: str) -> None:
        """A sentence for the person, above the table if there is one."""
        self._last_line = time.perf_counter()
        say(self._console, text)

    def _where(self, status: Status) -> str:
        return f"epoch {status.epoch + 1}, step {status.step + 1}/{self._num_batches}"

    def _rates(self) -> str:
        used = " ".join(f"{meter.utilisation:.0%}" for meter in self._meters)
        return f"{self._meters[0].images_per_second:,.0f} images/s, utilisation {used}"

    def _epoch_rates(self, epoch: int) -> str:
        """As ``_rates``, over an epoch with its validation."""
        accounts = self._history.accounts(Kind.TRAIN, Kind.VALIDATE, epochs=(epoch,))
        stages = [accounts[stage] for stage in range(self._spec.num_stages)]
        used = " ".join(f"{account.utilisation:.0%}" for account in stages)
        images = self._num_images * self._steps.get(epoch, self._num_batches) / self._num_batches
        return f"{images / stages[0].wall:,.0f} images/s, utilisation {used}"

    def _left(self, done: int) -> str:
        elapsed = time.perf_counter() - self._begun
        return duration(elapsed / max(done - self._begun_at, 1 / self._num_batches) * (self._spec.epochs - done))

    @property
    def now(self) -> Now | None:
        """Where the run is now; None before its first batch."""
        spec = self._spec
        if not self._statuses:
            return None
        return Now(
            title=f"{spec.settings.preset} on {spec.data_name}",
            at=time.time(),
            step=step_of(spec, self._statuses[0]),
            steps=spec.epochs * spec.steps_per_epoch,
            queue_depth=spec.settings.pipeline.depth,
            limit=self.limit,
            stages=live.stages_now(spec, self._statuses, self._meters),
        )

    def _picture(self) -> RenderableType:
        now = self.now
        return Group(*([live.picture(now, self._console.width)] if now is not None else []), self._progress)

    @property
    def limit(self) -> str:
        """What holds the run back now; "" where that cannot be told yet."""
        found = self._verdict()
        return self._named(str(found)) if found is not None else ""

    def _verdict(self) -> Verdict | None:
        accounts = [meter.account for meter in self._meters]
        seen = [account for account in accounts if account is not None]
        if len(seen) < len(accounts) or self._spec.settings.pipeline.executor == "serial":
            return None
        seconds = self._history.layer_seconds(epochs=1)
        return limit_of(self._spec, seen, seconds, self._input.share, joined=self._joined)

    def _warn_once(self) -> None:
        """Says what limits the run where much could be done about it, once it has trained for a while."""
        if self._warned or time.perf_counter() - self._begun < _SETTLED:
            return
        found = self._verdict()
        self._warned = found is not None
        if found is not None and found.grave:
            self.hint = str(found)
            self.say(f"hint: {self._named(self.hint)}")


class _Start:
    """How long each part of a run's start took."""

    def __init__(self, began: float) -> None:
        self._began, self._parts = began, [("opening the data and Ray", began)]

    def next(self, what: str) -> None:
        self._parts.append((what, time.time()))

    def finish(self, trained: float) -> list[str]:
        """Sentences; the first stage has been at its first batches for ``trained`` seconds."""
        first = time.time() - trained
        ends = [begin for _, begin in self._parts[1:]] + [first]
        parts = [f"{what} {end - begin:.1f} s" for (what, begin), end in zip(self._parts, ends, strict=True)]
        return [f"first training step {first - self._began:.1f} s after the command: {', '.join(parts)}"]


def _layers(layers: range) -> str:
    """ "layer 1" or "layers 2–4"."""
    return f"layer{'s' if len(layers) > 1 else ''} {live.numbers(layers)}"


def print_summary(console: Console, summary: dict[str, Any], folder: str, *, named: Callable[[str], str] = str) -> None:
    """The end of a run, for a person.

    Args:
        named: replaces the settings that a sentence names by what a person types.
        joined: whether the run is on a cluster that it has joined.
    """
    console.print()
    data, best = summary["data"], summary["best_epoch"]
    say(
        console,
        f"{summary['status']}: {summary['net']} on {data['name']} ({data['train']:,} training, {data['validate']:,} "
        f"validation, {data['test']:,} test images), {counted(summary['epochs_finished'], 'epoch')}"
        + (f", kept epoch {best:,} ({summary['best_by']})" if best is not None else ""),
    )
    rows = [
        LayerRow(
            layer=layer["layer"],
            readout=layer["test_accuracy"],
            alone=layer["test_direct_accuracy"],
            top_k=layer["test_top_k"],
            fisher=layer["test_fisher"],
            loss=layer["validation_loss"],
        )
        for layer in summary["layers"]
    ]
    print_layers(console, rows, top_k=summary["top_k"], loss="validation loss")
    speed = summary["speed"]
    if speed is not None:
        shared = " that share fewer cores, so their computing time has waiting in it" if speed["cores_shared"] else ""
        say(
            console,
            f"speed: {speed['images_per_second']:,.0f} images/s; speed-up {speed['measured_speedup']:.2f}× measured, "
            f"{speed['ideal_speedup']:.2f}× ideal for {counted(summary['stages'], 'stage')}{shared}",
        )
        for stage in speed["stages"]:
            shares = ", ".join(
                f"{name.replace('_', '-')} {stage[name] / stage['wall']:.1%}" for name in ("busy", *SHARES)
            )
            issue, kernel = stage["issue_ms"], stage["kernel_ms"]
            launching = "" if issue is None else f"; a step is issued in {issue:.2f} ms and computed in {kernel:.2f} ms"
            say(console, f"  stage {stage['stage']} ({stage['device']}): {shares}{launching}")
        if summary["stages"] > 1:
            say(console, named(speed["limit"]))
    if summary["restarts"]:
        lost = f"{summary['states']['restarting']:.1f} s"
        say(console, f"went on after {counted(summary['restarts'], 'failure')}, {lost} until it trained again")
    accuracy = accuracy_sentence(rows)
    if accuracy is None:
        look = f" `launch eval {folder}` looks at what it kept." if (Path(folder) / MODEL).is_file() else ""
        why = "the run has no readouts" if summary["status"] == "finished" else "the run ended before its test"
        say(console, f"No test accuracy: {why}.{look}")
    else:
        top_k = summary["top_k"]
        also = f", top-{top_k} {percent(rows[-1].top_k)}" if top_k > 1 else ""
        say(console, f"{accuracy}{also}", style="bold")
        if summary["selected_on"] == "test":
            say(console, f"selected on test: {BY_TEST}.")
    say(console, f"run folder: {folder}")


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _numbers(values: list[float]) -> str:
    """Numbers, and a dash for a layer that did not take part."""
    return "".join(" –" if math.isnan(value) else f" {value:.3f}" for value in values)
