"""What a sweep's folder says of it: sweep.json, from which it goes on, and sweep.csv with its table.

sweep.json   what was asked for, and of every point what its runs came to (docs/monitoring.md)
sweep.csv    a row for each point: the values of its settings, mean and deviation over its seeds
NAME/        a run folder for each point and seed, as `launch` leaves it
NAME.log     what that run printed
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter

from launch.output.run_folder import SWEEP, write_json
from launch.output.whole_file import write_whole
from launch.sweep.grid import SWITCHED, Axis, Grid, Point
from launch.sweep.runs import look
from pipeline import plain_json
from pipeline.errors import UserError
from pipeline.registry import STRICT

_FORMAT = 1
TABLE = "sweep.csv"
FIGURES: Mapping[str, tuple[str, ...]] = {
    "test_accuracy": ("test_accuracy",),
    "images_per_second": ("speed", "images_per_second"),
    "measured_speedup": ("speed", "measured_speedup"),
    "seconds": ("seconds", "total"),
}
"""What a sweep tells of each run, and where summary.json has it."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked for.

    Attributes:
        arguments: what follows `launch` for every run: preset or --config, and flags that are not swept.
        plugins: of all runs.
        axes: values of each setting, as typed.
        switches: those of the settings that are on or off.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    arguments: list[str]
    plugins: list[str]
    axes: dict[str, list[str]]
    switches: list[str]
    seeds: list[int]
    format: int = field(default=_FORMAT)

    @property
    def grid(self) -> Grid:
        axes = tuple(Axis(name, tuple(values)) for name, values in self.axes.items())
        return Grid(axes=axes, seeds=tuple(self.seeds))

    def words(self, point: Point, seed: int) -> list[str]:
        """What follows `launch` for a run, but for plug-ins and where it goes."""
        return [*self.arguments, *point.flags(frozenset(self.switches), seed)]

    def command(self, point: Point, seed: int) -> list[str]:
        """As ``words``, with the plug-ins."""
        return [*self.words(point, seed), *(word for plugin in self.plugins for word in ("--plugin", plugin))]


_ASKED = TypeAdapter(Asked)


@dataclass(frozen=True)
class Came:
    """What the run of a point with one seed came to.

    Attributes:
        figures: by the names of ``FIGURES``; None where the run did not come to it.
    """

    name: str
    seed: int
    status: str
    figures: Mapping[str, float | None]


@dataclass(frozen=True)
class Row:
    """A point, and what its runs came to."""

    point: Point
    runs: Sequence[Came]

    def values(self, figure: str) -> list[float]:
        """A figure of every finished run that has it."""
        finished = [run.figures[figure] for run in self.runs if run.status == "finished"]
        return [value for value in finished if value is not None]


def rows_of(folder: Path, asked: Asked) -> list[Row]:
    """Every point of a sweep as it is now."""
    return [
        Row(point, [_came(folder / point.run_name(seed), seed) for seed in asked.grid.seeds])
        for point in asked.grid.points()
    ]


def _came(folder: Path, seed: int) -> Came:
    status, run = look(folder)
    figures = {name: run.value(*path) if run is not None else None for name, path in FIGURES.items()}
    return Came(folder.name, seed, status, figures)


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Points with a test accuracy, the best mean first."""
    there = [row for row in rows if row.values("test_accuracy")]
    return sorted(there, key=lambda row: -statistics.mean(row.values("test_accuracy")))


def write(folder: Path, asked: Asked, rows: Sequence[Row]) -> None:
    """Writes both files. Raises OSError where that cannot be."""
    best = ranked(rows)
    points = [
        {
            "settings": dict(row.point.values),
            **{name: _spread(row.values(name)) for name in FIGURES},
            "runs": [{"run": one.name, "seed": one.seed, "status": one.status, **one.figures} for one in row.runs],
        }
        for row in rows
    ]
    best_settings = dict(best[0].point.values) if best else None
    write_json(folder / SWEEP, {**_ASKED.dump_python(asked), "best": best_settings, "points": points})
    text = io.StringIO()
    columns = [f"{name}_{what}" for name in FIGURES for what in ("mean", "deviation")]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*asked.axes, "runs", "finished", *columns])
    for row in rows:
        spreads = [_spread(row.values(name)) or {} for name in FIGURES]
        figures = [spread.get(what) for spread in spreads for what in ("mean", "deviation")]
        finished = sum(run.status == "finished" for run in row.runs)
        writer.writerow([*row.point.values.values(), len(row.runs), finished, *figures])
    write_whole(folder / TABLE, text.getvalue())


def _spread(values: Sequence[float]) -> dict[str, float | None] | None:
    if not values:
        return None
    return {"mean": statistics.mean(values), "deviation": statistics.stdev(values) if len(values) > 1 else None}


def read(folder: Path) -> Asked:
    """What a sweep's folder was made for. Raises UserError where it cannot be read."""
    try:
        values: Any = plain_json.read(folder / SWEEP)
        asked = _ASKED.validate_python({one.name: values[one.name] for one in fields(Asked)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder / SWEEP}: cannot be read ({reason}). Give a folder that --sweep left.") from error
    typed = [value for name in asked.switches for value in asked.axes.get(name, [])]
    if not (asked.arguments and asked.seeds and all(asked.axes.values()) and set(typed) <= SWITCHED.keys()):
        raise UserError(f"{folder / SWEEP}: has no arguments, seeds or values. Give a folder that --sweep left.")
    if asked.format != _FORMAT:
        raise UserError(f"{folder / SWEEP}: format {asked.format}; this version reads {_FORMAT}.")
    return asked


def extended(before: Asked, now: Asked, folder: Path) -> Asked:
    """A sweep that goes on in its folder, with the values and seeds that have come.

    Raises:
        UserError: it is another one.
    """
    if (before.arguments, before.plugins, list(before.axes)) != (now.arguments, now.plugins, list(now.axes)):
        settings = " ".join([*before.arguments, "--sweep", *before.axes])
        raise UserError(
            f"--run-dir {folder}: holds another sweep ({settings}). Give a new folder, or only more values and seeds."
        )
    axes = {name: list(dict.fromkeys([*values, *now.axes[name]])) for name, values in before.axes.items()}
    seeds = list(dict.fromkeys([*before.seeds, *now.seeds]))
    return Asked(arguments=now.arguments, plugins=now.plugins, axes=axes, switches=now.switches, seeds=seeds)
