"""A sweep's points as runs: each checked as the run itself would be, before any has started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.command_line.parse import names_config, parse_words, unknown
from launch.commands.train import checked
from launch.presets import PRESETS, load_plugins
from launch.sweep.grid import Point
from launch.sweep.processes import Job
from launch.sweep.record import Asked
from launch.sweep.runs import Needs, job_of, needs_of
from pipeline.config import build
from pipeline.config.settings import Settings
from pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A point that can run, and what each of its runs needs."""

    point: Point
    needs: Needs


def plan(asked: Asked) -> list[Planned]:
    """The points of a sweep that runs here.

    Raises:
        UserError, ResourcesError: as the first run would that cannot be; or two points are the same run.
    """
    return [Planned(point=point, needs=needs_of(settings)) for point, settings in settings_of(asked, checked)]


def settings_of(asked: Asked, check: Callable[[Settings], object]) -> list[tuple[Point, Settings]]:
    """Every point of a sweep with the settings of its first run.

    Args:
        check: raises UserError where they cannot be a run's.

    Raises:
        UserError: of the first that cannot be; or two points are the same run.
    """
    load_plugins(asked.plugins)
    if not names_config(asked.arguments[0]) and asked.arguments[0] not in PRESETS:
        raise UserError(unknown(asked.arguments[0], PRESETS, "preset"))
    found: list[tuple[Point, Settings]] = []
    seen: dict[str, Point] = {}
    for point in asked.grid.points():
        settings = build.expand_baseline(parse_words(asked.words(point, asked.seeds[0])).run)
        check(settings)
        same = seen.setdefault(repr(settings), point)
        if same is not point:
            raise UserError(f"--sweep: {same.name} and {point.name} are the same run. Leave one of them out.")
        found.append((point, settings))
    return found


def jobs_of(asked: Asked, planned: Sequence[Planned], folder: Path) -> list[Job]:
    """The runs that are not finished: those that were cut off from their checkpoints on.

    Raises:
        UserError: one goes on in another process.
    """
    jobs = [
        job_of(folder / one.point.run_name(seed), asked.command(one.point, seed), one.needs)
        for one in planned
        for seed in asked.seeds
    ]
    return [job for job in jobs if job is not None]
