"""`launch bench --ablate`: from a plain PyTorch loop to the product's step, one optimisation after the other."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from rich.console import Console

from launch.bench.ablation_steps import STEPS, TUNED, AblationStep, train_step_by_step
from launch.bench.arguments import BenchArguments, check, output_folder
from launch.bench.entries import Entry, compete
from launch.bench.figures import Figures, figures_of, ratio
from launch.bench.protocol import DeviceUse, Round, Runner
from launch.output import console as console_module
from launch.output.run_folder import command_line
from launch.output.summary import machine
from launch.output.tables import print_table
from pipeline.config import settings as settings_module
from pipeline.config.build import build_run
from pipeline.config.devices import local_devices, num_cores
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Settings
from pipeline.errors import UserError
from pipeline.methods import CffSettings
from pipeline.runtime.allocator import ENVIRONMENT
from pipeline.spawn import Child


class AblationRunner(Runner):
    """A step of the ablation as a row: it takes turns with the others.

    Attributes:
        first_step: seconds of the very first step; what it takes more than the others is compilation, for the most.
    """

    family: Literal["backprop", "local"] = "local"

    def __init__(self, spec: RunSpec, step: AblationStep, *, warm: int) -> None:
        self.name = self.title = step.name
        self._spec = replace(spec, settings=replace(spec.settings, pipeline=step.settings(spec.settings.pipeline)))
        self._rung, self._warm = step, warm
        self._child: Child[tuple[int, int], tuple[float, float, int]] | None = None
        self.first_step = 0.0

    def start(self) -> None:
        self._child = Child(self.name, train_step_by_step, self._spec, self._rung)
        self.first_step = self._child.ask((0, 1))[0]

    def round(self, steps: int) -> Round:
        assert self._child is not None, "start() comes first"
        took, loss, peak = self._child.ask((self._warm, steps))
        use = DeviceUse(name="process", seconds={"busy": took}, peak_bytes=peak)
        images = steps * self._spec.settings.train.batch_size
        return Round(images=images, seconds=took, devices=(use,), bytes_per_step=0, loss=loss)

    def close(self) -> None:
        if self._child is not None:
            self._child.close()
        self._child = None


@dataclass(frozen=True, kw_only=True)
class AblationRow:
    """A step in the report: times the first one, times the one before, and seconds spent compiling."""

    name: str
    images_per_second: float
    low: float
    high: float
    to_first: float
    to_tuned: float
    to_before: float
    compile_seconds: float
    peak_bytes: int


def ablation_rows(entries: Sequence[Entry], batch_size: int) -> list[AblationRow]:
    """The steps that ran. One that did not is left out, and the next one is compared with the one before it."""
    ran = [(entry, row) for entry, row in zip(entries, figures_of(entries, batch_size), strict=True) if entry.rounds]
    tuned = next((entry for entry, _ in ran if entry.name == STEPS[TUNED].name), ran[0][0]) if ran else None
    rows = []
    for number, (entry, row) in enumerate(ran):
        assert tuned is not None
        rows.append(
            AblationRow(
                name=entry.name,
                images_per_second=row.images_per_second or 0.0,
                low=row.low or 0.0,
                high=row.high or 0.0,
                to_first=_times(entry, ran[0][0]),
                to_tuned=_times(entry, tuned),
                to_before=_times(entry, ran[max(0, number - 1)][0]),
                compile_seconds=_compiling(entry, row),
                peak_bytes=row.peak_bytes or 0,
            )
        )
    return rows


def ablate(asked: BenchArguments, console: Console, *, threads_given: bool) -> None:
    """Measures the ablation and reports. Raises UserError for methods that it does not have a plain loop of."""
    check(asked)
    settings, method = asked.settings, asked.settings.method
    if not isinstance(method, CffSettings):
        raise UserError(f"--ablate with {method.kind}: the ablation is of Contrastive Forward-Forward alone.")
    threads = settings.pipeline.threads if threads_given else num_cores()
    settings = _single(settings, threads)
    folder = output_folder(asked.out, "bench-ablation", run_dir=asked.settings.run_dir)
    spec = _spec(settings)
    entries = [Entry(runner=AblationRunner(spec, step, warm=asked.warm), source="memory") for step in STEPS]
    title = (
        f"{spec.net.describe()}, {method.views}-forward, {spec.data_name}, batch {settings.train.batch_size}, "
        f"one process of {threads} thread{'s' if threads > 1 else ''} on {spec.device}"
    )

    def say(sentence: str) -> None:
        console_module.say(console, sentence)

    say(title)
    stopped = False
    try:
        compete(entries, rounds=asked.rounds, steps=asked.steps, say=say)
    except KeyboardInterrupt:
        stopped = True
    rows = ablation_rows(entries, settings.train.batch_size)
    _print(console, title, rows)
    folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "format": 1,
        "command": command_line(),
        "title": title,
        "settings": settings_module.to_dict(settings),
        "machine": machine(),
        "allocator_variables": {name: value for name, value in _allocator_variables().items() if value is not None},
        "stopped": stopped,
        "steps": [asdict(row) for row in rows],
        "trouble": {entry.name: entry.trouble for entry in entries if entry.trouble is not None},
        "rounds": {
            entry.name: {number + 1: taken.images / taken.seconds for number, taken in entry.rounds.items()}
            for entry in entries
        },
    }
    (folder / "ablation.json").write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    say(f"report: {folder}")
    if stopped:
        raise KeyboardInterrupt


def _single(settings: Settings, threads: int) -> Settings:
    """One process without readouts: what the plain loop does."""
    pipe = replace(settings.pipeline, executor="serial", stages="auto", partition="even", threads=threads)
    return replace(settings, pipeline=pipe, readout=replace(settings.readout, mode="after"))


def _spec(settings: Settings) -> RunSpec:
    pipe = settings.pipeline
    return build_run(settings, local_devices(pipe.device, pipe.threads, pipe.precision))


def _times(entry: Entry, other: Entry) -> float:
    found = ratio(entry, other)
    return found.of_medians if found is not None else float("nan")


def _compiling(entry: Entry, row: Figures) -> float:
    assert isinstance(entry.runner, AblationRunner)
    return max(0.0, entry.runner.first_step - (row.step_seconds or 0.0))


def _allocator_variables() -> dict[str, str | None]:
    """Where these are set, they decide for every step."""
    return {name: os.environ.get(name) for name in ENVIRONMENT}


def _print(console: Console, title: str, rows: Sequence[AblationRow]) -> None:
    headings = ("and with", "images/s", "range", "× first", "× tuned plain", "× before", "first step s", "peak MiB")
    cells = [
        (
            row.name,
            f"{row.images_per_second:,.0f}",
            f"{row.low:,.0f}–{row.high:,.0f}",
            f"{row.to_first:.2f}",
            f"{row.to_tuned:.2f}",
            f"{row.to_before:.2f}",
            f"{row.compile_seconds:.1f}",
            f"{row.peak_bytes / 2**20:,.0f}",
        )
        for row in rows
    ]
    print_table(console, headings, cells, title=title, left=headings[:1])
