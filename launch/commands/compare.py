"""`launch compare`: runs side by side, those that differ in their seed alone as one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from launch.output.console import counted, say
from launch.output.logs.figures import SHARES
from launch.output.saved_runs import SavedRun, open_all
from launch.output.seeds import difference, mean_and_deviation
from launch.output.tables import print_table
from pipeline.config.saved import flattened
from pipeline.errors import UserError

_SEED = "train.seed"
_NO_MATTER = frozenset({"run_dir", "log_every", "trace", "profile", _SEED})


@dataclass(frozen=True)
class _Column:
    """Runs whose settings are the same but for the seed."""

    runs: list[SavedRun]
    settings: Mapping[str, Any]

    @property
    def heading(self) -> str:
        first = self.runs[0].name
        return first if len(self.runs) == 1 else f"{first} and {counted(len(self.runs) - 1, 'other seed')}"


def compare(folders: Sequence[Path], console: Console) -> None:
    """Prints what differs between runs.

    Raises:
        UserError: fewer than two, or one is no run folder.
    """
    runs = open_all(folders) if folders else []
    if len(runs) < 2:
        raise UserError("launch compare: give two run folders or more, or a folder of them.")
    columns = _columns(runs)
    rows = [*_differing(columns), *_figures(columns), *_stages(columns)]
    headings = ("", *(column.heading for column in columns))
    print_table(console, headings, rows, left=("",))
    for sentence in _significance(columns):
        say(console, sentence)


def _columns(runs: Sequence[SavedRun]) -> list[_Column]:
    found: dict[str, _Column] = {}
    for run in runs:
        settings = dict(flattened(run.settings))
        same = {name: value for name, value in settings.items() if name not in _NO_MATTER}
        key = json.dumps([same, run.config.get("stages"), run.config.get("device")], sort_keys=True)
        found.setdefault(key, _Column([], settings)).runs.append(run)
    return list(found.values())


def _differing(columns: Sequence[_Column]) -> Iterator[list[str]]:
    """Settings that are not the same in all columns."""
    names = dict.fromkeys(name for column in columns for name in column.settings if name not in _NO_MATTER)
    for name in names:
        values = [column.settings.get(name) for column in columns]
        if any(value != values[0] for value in values[1:]):
            yield [name, *("–" if value is None else _plain(value) for value in values)]
    for name in ("stages", "device"):
        values = [column.runs[0].config.get(name) for column in columns]
        if any(value != values[0] for value in values[1:]):
            yield [name, *(_plain(value) for value in values)]


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " | ".join(" ".join(map(str, one)) if isinstance(one, list) else str(one) for one in value)
    return str(value)


def _figures(columns: Sequence[_Column]) -> Iterator[list[str]]:
    wanted: tuple[tuple[str, tuple[str, ...], Callable[[float], str]], ...] = (
        ("test accuracy", ("test_accuracy",), lambda value: f"{value:.2%}"),
        ("best epoch", ("best_epoch",), lambda value: f"{value:.3g}"),
        ("images/s", ("speed", "images_per_second"), lambda value: f"{value:,.0f}"),
        ("speed-up, measured", ("speed", "measured_speedup"), lambda value: f"{value:.2f}"),
        ("speed-up, ideal", ("speed", "ideal_speedup"), lambda value: f"{value:.2f}"),
        ("seconds", ("seconds", "total"), lambda value: f"{value:,.0f}"),
    )
    yield ["status", *(", ".join(dict.fromkeys(run.status for run in column.runs)) for column in columns)]
    for name, path, shown in wanted:
        cells = [mean_and_deviation([run.value(*path) for run in column.runs], shown) for column in columns]
        if any(cell != "–" for cell in cells):
            yield [name, *cells]


def _stages(columns: Sequence[_Column]) -> Iterator[list[str]]:
    """Where the time of every stage went."""
    found = [[run.value("speed", "stages") or [] for run in column.runs] for column in columns]
    most = max((len(stages) for runs in found for stages in runs), default=0)
    for stage in range(most):
        for share in ("busy", *SHARES):
            cells = []
            for runs in found:
                values = [stages[stage][share] / stages[stage]["wall"] for stages in runs if len(stages) > stage]
                cells.append(mean_and_deviation(values, lambda value: f"{value:.1%}"))
            if any(cell.replace("0.0%", "").strip("–± ") for cell in cells):  # none has any
                yield [f"stage {stage + 1} {share.replace('_', '-')}", *cells]


def _significance(columns: Sequence[_Column]) -> Iterator[str]:
    """Of columns with several seeds each: how likely such a difference in accuracy is by chance alone."""
    samples = [[a for run in column.runs if (a := run.value("test_accuracy")) is not None] for column in columns]
    several = [(column, sample) for column, sample in zip(columns, samples, strict=True) if len(sample) > 1]
    for column, sample in several[1:]:
        first, base = several[0]
        yield difference(column.heading, first.heading, sample, base)
