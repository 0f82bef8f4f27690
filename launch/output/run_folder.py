"""The folder that a run leaves: settings, metrics, TensorBoard events, weights, predictions, summary.

config.json          resolved settings and the data's facts; give it back with --config
metrics.jsonl        one line per layer and pass
steps.safetensors    the loss of every layer at every step
events.out.tfevents* for TensorBoard
model.safetensors    the kept weights with readouts: what `launch export` copies and `pipeline.load` reads; as long as
                     the run goes on, the best epoch's so far
last.safetensors     weights and optimizer states at the end of the layers' training
salvaged.safetensors in place of both, where a worker that died took some layers along: the weights of the others
predictions.csv      the last layer's prediction for every test image
skipped.csv          files that the data are without, each with its reason; only where there are any
summary.json         every figure that the run printed (docs/summary.md)
curves, pipeline     .png, .pdf and .svg: what launch/output/run_pictures.py draws
trace.json           what every stage did in some steps (launch/output/trace.py); only where somebody asked for it, and
                     trace.png and .svg, flame.speedscope.json beside it
checkpoints/         what `launch resume` goes on from (pipeline/checkpoints/folder.py)
"""

from __future__ import annotations

import csv
import errno
import itertools
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from launch.output import live
from launch.output import trace as trace_file
from launch.output.going_on import before, cut_events, cut_metrics, lock_of, reports_of
from launch.output.live import Now
from launch.output.logs.base import RunFacts
from launch.output.logs.figures import Charts, Figures
from launch.output.logs.lines import lines_of
from launch.output.logs.meters import Meter
from launch.output.logs.places import Logs, flat, kinds_of, outcome_of
from launch.output.run_pictures import RunPictures
from launch.output.trace import Traces
from launch.output.whole_file import write_whole
from pipeline import plain_json
from pipeline.config.run_spec import RunSpec
from pipeline.config.saved import config_of
from pipeline.data import skipped
from pipeline.data.skipped import Skipped
from pipeline.errors import RunError, UserError
from pipeline.export import card_of, save
from pipeline.layers.state import State
from pipeline.runtime.history import History, RunResult
from pipeline.telemetry.reports import PassReport, Status
from pipeline.telemetry.trace import StageTrace
from pipeline.tensor_file import save_tensors

MODEL, SALVAGED = "model.safetensors", "salvaged.safetensors"
RUNS = Path("runs")
"""Where runs go that are not told where."""

SWEEP, REPRODUCTION = "sweep.json", "reproduce.json"
"""What a sweep's folder has beside the folders of its runs (``launch.sweep.record``), and a reproduced table's
(``launch.reproduce.record``)."""

METRICS, CHECKPOINTS = "metrics.jsonl", "checkpoints"

_SPARE = 64 << 20  # bytes that metrics, events and summary may come to


class RunFolder:
    """Writes everything that a run leaves. One process writes it, the one that launched the run.

    A disk that fills up during training does not end it: what cannot be written is said once, and the weights are
    written at the end, elsewhere if need be.

    Args:
        resumed: what was reported up to the checkpoint from which the run goes on in this folder, and the training
            steps until then; None: the folder is new.

    Raises:
        UserError: it cannot be written, or another process writes to it.
    """

    def __init__(
        self, spec: RunSpec, path: Path, *, warn: Callable[[str], None], resumed: tuple[History, int] | None = None
    ) -> None:
        self._spec, self._warn, self._pictures = spec, warn, RunPictures(spec)
        check_room(spec, path)
        self._figures = Figures(spec)
        try:
            self.path = path if resumed is not None else _claim(path, named=spec.settings.run_dir is not None)
            self.lock = lock_of(self.path)
            if resumed is not None:
                self._go_on(*resumed)
            write_json(self.path / "config.json", config_of(spec))
            self._metrics = (self.path / METRICS).open("a", buffering=1)
        except OSError as error:
            raise UserError(f"--run-dir {path}: cannot be written ({error.strerror}). Choose another.") from error
        self._logs = Logs(
            RunFacts(
                folder=self.path,
                name=run_name(self.path),
                settings=flat(spec.settings),
                config=config_of(spec),
                charts=Charts.of(spec),
                resumed=resumed is not None,
            ),
            warn,
            kinds_of(spec.settings),
        )
        self._outcome: dict[str, float] = {}
        self._traces, self._is_traced = Traces(), False
        self._logging = True

    @property
    def checkpoints(self) -> Path:
        """Where the run's checkpoints are."""
        return self.path / CHECKPOINTS

    def _go_on(self, history: History, step: int) -> None:
        """Takes off what was written of the run behind its checkpoint, which will come again."""
        kept = before(history, step, self._spec.steps_per_epoch)
        cut_metrics(self.path / METRICS, kept.passes)
        cut_events(self.path, kept)
        for report in reports_of(history):
            self._pictures.observe(report)
            self._figures.of_report(report)
        self._figures.go_on(step)

    def divide(self, spec: RunSpec) -> None:
        """The run goes on in the stages of ``spec``."""
        self._spec = spec
        self._pictures.divide(spec)
        self._traces = Traces()
        self._figures.divide(spec)

    def discard(self) -> None:
        """Removes the folder again: the run never began, and its name is free for another try."""
        self._metrics.close()
        self._logs.finish({}, 0)
        self.lock.release()
        shutil.rmtree(self.path)

    def list_skipped(self, left_out: list[Skipped]) -> None:
        """Writes what the run's data are without, where that is anything."""
        if left_out:
            self._log(lambda: skipped.save(self.path / skipped.SKIPPED_FILE, left_out))

    def release(self) -> None:
        """Lets another process write to it."""
        (self.path / live.NOW).unlink(missing_ok=True)
        self.lock.release()

    def save_best(self, weights: State) -> None:
        """Writes the weights of the best epoch so far."""
        self._log(lambda: _whole(lambda: save(self.path / MODEL, weights, card_of(self._spec))))

    def note(self, title: str, text: str) -> Path:
        """Writes down what helps to find a failure's cause. Returns the file."""
        name = "-".join(re.findall(r"\w+", title))
        file = self.path / f"{name}-{time.strftime('%H%M%S')}.txt"

        def write() -> None:
            file.write_text(text)

        self._log(write)
        return file

    def observe(self, report: PassReport) -> None:
        """Writes a pass's figures."""
        self._pictures.observe(report)
        self._logs.write(self._figures.of_report(report))
        self._log(lambda: self._metrics.writelines(lines_of(self._spec, report)))

    def traced(self, trace: StageTrace) -> Path | None:
        """Takes a stage's trace. Returns the file of all stages', once it is there."""
        whole = self._traces.add(self._spec, trace)
        if whole is None:
            return None
        self._log(lambda: trace_file.write(self.path, self._spec, whole))
        self._is_traced = True
        return self.path / trace_file.TRACE

    def follow(self, statuses: Sequence[Status], meters: Sequence[Meter]) -> None:
        """Writes what the stages are doing."""
        self._logs.write(self._figures.of_statuses(statuses, meters))

    def show(self, now: Now | None) -> None:
        """Leaves where the run is now for `launch top`."""
        if now is not None:
            self._log(lambda: live.write(self.path, now))

    def _log(self, write: Callable[[], object]) -> None:
        if not self._logging:
            return
        try:
            write()
        except OSError as error:
            self._logging = False
            self._warn(f"{self.path}: metrics are no longer written ({error.strerror}). Training goes on.")

    def finish(self, result: RunResult, summary: dict[str, Any]) -> Path:
        """Writes weights, predictions and summary, and no picture yet. Returns the folder they are in.

        Raises:
            RunError: neither the run folder nor the temporary folder can take them.
        """
        self._logs.flush()
        self._outcome = outcome_of(summary)
        self._log(self._metrics.close)
        try:
            self._write_result(self.path, result, summary)
        except OSError as error:
            elsewhere = Path(tempfile.mkdtemp(prefix="localpipe-run-"))
            self._warn(f"{self.path}: cannot be written ({error.strerror}). Saving to {elsewhere} instead.")
            try:
                self._write_result(elsewhere, result, summary)
            except OSError as again:
                raise RunError(f"Neither {self.path} nor {elsewhere} can be written: {again.strerror}.") from again
            return elsewhere
        return self.path

    def draw(self, folder: Path) -> None:
        """Draws the run as far as it came into a folder, and ends its logs. Where that cannot be done, says so."""
        step = self._figures.step
        if (rest := self._traces.rest()) is not None:
            self._log(lambda: trace_file.write(folder, self._spec, rest))
            self._is_traced = True
        for picture in self._pictures.write(folder, traced=self._is_traced, warn=self._warn):
            self._logs.picture(picture.stem, picture, step)
        self._logs.finish(self._outcome, step)

    def _write_result(self, path: Path, result: RunResult, summary: dict[str, Any]) -> None:
        if path != self.path:
            write_json(path / "config.json", config_of(self._spec))
        if result.weights and result.lost:
            _whole(lambda: save_tensors(path / SALVAGED, result.weights))
        elif result.weights:
            _whole(lambda: save(path / MODEL, result.weights, card_of(self._spec)))
            _whole(lambda: save(path / "last.safetensors", result.last, card_of(self._spec)))
        steps = result.history.step_losses()
        if steps:
            tensors = {name: torch.from_numpy(losses) for name, losses in steps.items()}
            _whole(lambda: save_tensors(path / "steps.safetensors", tensors))
        predictions = result.history.predictions()
        if predictions is not None:
            with (path / "predictions.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["image", "label", "prediction"])
                writer.writerows(
                    [int(i), self._spec.classes[label], self._spec.classes[guess]] for i, label, guess in predictions
                )
        write_json(path / "summary.json", summary)


def new_path(run_dir: str | None, preset: str) -> Path:
    """Where the run goes. Raises UserError if a folder that was asked for holds something."""
    if run_dir is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        return next(path for path in _numbered(RUNS / f"{preset}-{stamp}") if not path.exists())
    path = Path(run_dir)
    if is_sweep(path):
        raise UserError(f"--run-dir {path} is a sweep's folder. Give --sweep or --seeds as well, or a new folder.")
    if is_reproduction(path):
        raise UserError(f"--run-dir {path} is a folder of `launch reproduce`. Give a new folder.")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"--run-dir {path} exists and holds something. Give a new folder, or remove this one.")
    return path


def _claim(path: Path, *, named: bool) -> Path:
    """Makes the folder, which from then on is this run's alone: another may have been started in the same second.

    Args:
        named: a person chose the name. Otherwise it gets a number where the folder is there by now.

    Raises:
        UserError: another run writes to the folder of that name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if named:
        path.mkdir(exist_ok=True)
        try:
            (path / "config.json").touch(exist_ok=False)
        except FileExistsError as error:
            raise UserError(f"--run-dir {path}: another run has begun to write there. Give a new folder.") from error
        return path
    for candidate in _numbered(path):
        try:
            candidate.mkdir()
        except FileExistsError:
            continue
        path = candidate
        break
    return path


def _numbered(path: Path) -> Iterator[Path]:
    """The path, and then the same with a number behind it: -2, -3, …"""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.name}-{number}")


def is_sweep(place: Path | str) -> bool:
    """Whether a folder is a sweep's."""
    return (Path(place) / SWEEP).is_file()


def is_reproduction(place: Path | str) -> bool:
    """Whether a folder is that of a table of `launch reproduce`."""
    return (Path(place) / REPRODUCTION).is_file()


def run_name(folder: Path) -> str:
    """A run's name among others: of a run in a sweep or of a table, "SWEEP/RUN"."""
    folder = folder.resolve()
    among = is_sweep(folder.parent) or is_reproduction(folder.parent)
    return f"{folder.parent.name}/{folder.name}" if among else folder.name


def load_config(run: Path) -> dict[str, Any]:
    """``config.json`` of a run folder. Raises UserError where ``run`` is not one."""
    try:
        values = plain_json.read(run / "config.json")
    except (OSError, ValueError) as error:
        raise UserError(f"{run}: not a run folder (config.json: {error}). Give a folder that `launch` left.") from error
    if not isinstance(values, dict) or "settings" not in values:
        raise UserError(f"{run}: config.json holds no settings. Give a folder that `launch` left.")
    data = values.get("data")
    for name in ("folder", "content_hash"):
        if not isinstance(data, dict) or not isinstance(data.get(name), str):
            raise UserError(
                f"{run / 'config.json'}: data.{name}, a text, is missing. Give a folder as `launch` left it, or train "
                "again with --config and this file."
            )
    return values


def check_room(spec: RunSpec, path: Path) -> None:
    """Refuses a disk that cannot hold what the run will leave, before the run has cost anything."""
    # The kept weights, the last ones, and AdamW's two moments, in float32.
    needed = 4 * sum(spec.num_parameters()) * 4 + _SPARE
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"--run-dir {path}: {free / 2**20:,.0f} MiB are free and the run leaves up to {needed / 2**20:,.0f} MiB. "
            "Free some space or choose another disk."
        )


def _whole(write: Callable[[], None]) -> None:
    """safetensors reports a full disk with an error of its own kind; it is an OSError to everyone else."""
    try:
        write()
    except OSError:
        raise
    except Exception as error:
        if "No space left" in str(error) or "os error 28" in str(error):
            raise OSError(errno.ENOSPC, "No space left on device") from error
        raise


def write_json(path: Path, values: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    write_whole(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def command_line() -> str:
    """The command as it was typed, for the record."""
    return " ".join(["launch", *sys.argv[1:]])
