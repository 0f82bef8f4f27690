"""`launch PRESET … --sweep NAME=V1,V2 --seeds N`: a grid of runs and one table; `launch resume SWEEP` goes on with it.

Every run is `launch PRESET …` in a process of its own. Ray Tune does not serve here. It places trials as actors in one
cluster that it holds, while a run starts a Ray of its own, or joins a cluster as its driver, lays its stages out
itself, and has its own way to stop, to save and to go on: a trial would be an actor that waits for a process. Left of
Tune would be its queue, which is ``launch.sweep.processes``, for the packages that ray[tune] needs besides. Its search
and its early stopping would be worth them; a grid has neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from rich.console import Console

from launch.command_line.arguments import ResumeArguments
from launch.command_line.flags import flags_of
from launch.command_line.options import take_options
from launch.command_line.parse import RunArguments
from launch.command_line.sweep_flags import SweepFlags
from launch.output.console import counted, make_console, say, warn
from launch.output.run_folder import is_sweep, new_path
from launch.output.tables import print_table
from launch.signals import INTERRUPTED
from launch.sweep import record
from launch.sweep.grid import read_count, read_grid
from launch.sweep.points import Planned, jobs_of, plan
from launch.sweep.record import Asked, Row
from launch.sweep.runs import held, run_all
from launch.sweep.table import print_rows
from pipeline.errors import UserError

_OF_SWEEP = ("--dry-run", "--quiet", "-q")
"""Flags that say how the sweep is shown, and not what its runs are."""


def sweep(given: SweepFlags, words: list[str], parsed: RunArguments, plugins: Sequence[str], console: Console) -> int:
    """Runs a sweep, or goes on with it where its folder is given. Returns the exit status.

    Args:
        words: what follows `launch`, without the sweep's own flags.
        parsed: what they say.

    Raises:
        UserError: something asked for cannot be; nothing was started.
    """
    asked, at_once = read_asked(given, words, parsed, plugins)
    run_dir = parsed.run.run_dir
    folder = Path(run_dir) if run_dir is not None and is_sweep(run_dir) else None
    if folder is not None:
        asked = record.extended(record.read(folder), asked, folder)
    folder = folder or new_path(run_dir, f"{parsed.run.preset}-sweep")
    planned = plan(asked)
    if parsed.dry_run:
        _print_plan(asked, planned, folder, console)
        return 0
    return _carry_out(asked, planned, folder, at_once, console, make_console(quiet=parsed.quiet))


def read_asked(
    given: SweepFlags, words: list[str], parsed: RunArguments, plugins: Sequence[str]
) -> tuple[Asked, int | None]:
    """What a sweep is asked for, and how many runs are to go on beside each other; arguments as of ``sweep``.

    Raises:
        UserError: the sweep's own flags cannot be, or do not go with the others.
    """
    settings = parsed.run
    if given.sweep is None and given.seeds is None:
        raise UserError("--at-once: goes with --sweep or --seeds. Give one of them as well.")
    flags = {flag.name: flag for flag in flags_of(settings)}
    grid = read_grid(given.sweep, given.seeds, first_seed=settings.train.seed, flags=flags)
    at_once = read_count("--at-once", given.at_once) if given.at_once is not None else None
    for name in ("--run-dir", "--seed"):  # which every run has of its own
        _, words = take_options(words, name, "a value")
    for axis in grid.axes:
        if _is_given(axis.name, words):
            raise UserError(f"--{axis.name} is given and swept over. Leave one of them out.")
    asked = Asked(
        arguments=[word for word in words if word not in _OF_SWEEP],
        plugins=list(plugins),
        axes={axis.name: list(axis.values) for axis in grid.axes},
        switches=[axis.name for axis in grid.axes if flags[axis.name].switch != "no"],
        seeds=list(grid.seeds),
    )
    return asked, at_once


def _is_given(name: str, words: Sequence[str]) -> bool:
    typed = [word.partition("=")[0].replace("_", "-") for word in words]
    return f"--{name}" in typed or f"--no-{name}" in typed


def go_on(arguments: ResumeArguments, console: Console) -> int:
    """`launch resume SWEEP`. Returns the exit status.

    Raises:
        UserError: a change is asked for, the folder is damaged, or another process writes to it.
    """
    refuse_changes(arguments, "a sweep")
    folder = Path(arguments.run)
    asked = record.read(folder)
    return _carry_out(asked, plan(asked), folder, None, console, make_console(quiet=arguments.quiet))


def refuse_changes(arguments: ResumeArguments, what: str) -> None:
    """Raises UserError where `launch resume` was given a change for many runs at once, of a sweep or a table."""
    given = {one.name for one in fields(arguments) if getattr(arguments, one.name) not in (None, False)}
    if changes := given - {"run", "quiet", "verbose"}:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(changes))
        raise UserError(f"{arguments.run}: is {what}, which goes on as it was asked for. Leave out {names}.")


def _print_plan(asked: Asked, planned: Sequence[Planned], folder: Path, console: Console) -> None:
    """What would run."""
    axes = list(asked.axes)
    rows = [
        [one.point.run_name(seed), *one.point.values.values(), str(seed)] for one in planned for seed in asked.seeds
    ]
    print_table(console, ("run", *axes, "seed"), rows, left=("run", *axes))
    say(console, f"{counted(len(rows), 'run')} in {folder}. Nothing was started (--dry-run).")


def _carry_out(
    asked: Asked, planned: Sequence[Planned], folder: Path, at_once: int | None, console: Console, aside: Console
) -> int:
    with held(folder):
        jobs = jobs_of(asked, planned, folder)
        if finished := len(asked.seeds) * len(planned) - len(jobs):
            say(aside, f"{counted(finished, 'run')} of before: finished, and not run again")
        _note(folder, asked)
        stopped = run_all(jobs, at_once=at_once, aside=aside, note=lambda: _note(folder, asked))
        return _conclude(record.rows_of(folder, asked), folder, console, stopped=stopped)


def _note(folder: Path, asked: Asked) -> None:
    """Writes down how far the sweep is."""
    try:
        record.write(folder, asked, record.rows_of(folder, asked))
    except OSError as error:
        warn(f"{folder}: what its runs came to is not written there ({error.strerror}). They go on.")


def _conclude(rows: Sequence[Row], folder: Path, console: Console, *, stopped: bool) -> int:
    """Prints the table. Returns the exit status."""
    console.print()
    print_rows(console, rows)
    say(console, f"sweep folder: {folder}")
    if all(run.status == "finished" for row in rows for run in row.runs):
        return 0
    say(console, f"go on with: launch resume {folder}")
    return INTERRUPTED if stopped else 1
