"""`launch reproduce TABLE [flags]`: the runs of a paper's table, each a process of its own, and the table beside it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from launch.command_line.arguments import ReproduceArguments, ResumeArguments
from launch.command_line.help import HELP, HELP_ALL
from launch.command_line.parse import parse
from launch.output.console import counted, make_console, say
from launch.output.run_folder import is_reproduction, new_path
from launch.presets import load_plugins
from launch.reproduce import record
from launch.reproduce.files import Files, sentences_of, title_of
from launch.reproduce.grid import Wanted, epochs_of, missing_in, wanted, work_of
from launch.reproduce.record import Asked
from launch.reproduce.report import print_report
from launch.reproduce.results import rows_of
from launch.reproduce.table import Table as PaperTable
from launch.reproduce.tables import TABLES
from launch.signals import INTERRUPTED
from launch.sweep.command import refuse_changes
from launch.sweep.grid import read_count
from launch.sweep.processes import Job
from launch.sweep.runs import held, job_of, run_all
from pipeline import plugins
from pipeline.errors import UserError

_ABOUT = """Trains the runs of a paper's table, each in a process of its own as `launch` would, and writes the table
with the paper's figures beside them: mean and standard deviation over the seeds, the paper's figure, the difference.
Without a table, or with --list, it says which there are.

All other flags are those of every run: --epochs 20, --train-fraction 0.1, --executor serial. They take the place of the
table's own. The table then says that it does not have the paper's budget. `launch resume FOLDER` goes on."""

_NOT_OF_RUNS = {
    "--config": "the table says what its runs are",
    "--sweep": "the table says what its runs are",
    "--cluster": "the runs are where it is typed",
    "--detach": "the runs are where it is typed",
}


def reproduce(arguments: Sequence[str], console: Console) -> int:
    """Runs `launch reproduce` with these arguments. Returns the exit status.

    Raises:
        UserError: a mistake in what was asked; nothing was started.
    """
    own, flags = _split(arguments)
    given = parse(ReproduceArguments, own, command="launch reproduce", about=_ABOUT)
    if given.table is None or given.list:
        if arguments and not given.list:
            raise UserError(
                f"launch reproduce {shlex.join(arguments)}: name a table first. `launch reproduce --list` shows which "
                "there are."
            )
        _print_list(console)
        return 0
    asked = _asked(given, flags)
    folder = Path(given.run_dir) if given.run_dir is not None and is_reproduction(given.run_dir) else None
    if folder is not None:
        asked = record.extended(record.read(folder), asked, folder)
    folder = folder or new_path(given.run_dir, f"reproduce-{given.table}")
    runs = wanted(asked.entries, asked.flags, first_seed=asked.seeds[0])
    if given.dry_run:
        _print_plan(asked, runs, folder, console)
        return 0
    return _carry_out(asked, runs, folder, given.at_once, console, make_console(quiet=given.quiet))


def go_on(arguments: ResumeArguments, console: Console) -> int:
    """`launch resume FOLDER` of a table. Returns the exit status.

    Raises:
        UserError: a change is asked for, the folder is damaged, or another process writes to it.
    """
    refuse_changes(arguments, "a table of `launch reproduce`")
    folder = Path(arguments.run)
    asked = record.read(folder)
    load_plugins(asked.plugins)
    runs = wanted(asked.entries, asked.flags, first_seed=asked.seeds[0])
    return _carry_out(asked, runs, folder, None, console, make_console(quiet=arguments.quiet))


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """This command's own arguments, and the flags of every run."""
    own_names = {one.name.replace("_", "-") for one in fields(ReproduceArguments)}
    own: list[str] = []
    flags: list[str] = []
    chosen = own
    for word in arguments:
        if word.startswith("--"):
            name = word.partition("=")[0]
            if name in _NOT_OF_RUNS:
                raise UserError(f"{name}: {_NOT_OF_RUNS[name]}. Leave it out.")
            is_own = name.removeprefix("--").replace("_", "-") in own_names or name in (*HELP, HELP_ALL)
            chosen = own if is_own else flags
        elif word in ("-q", *HELP):
            chosen = own
        chosen.append(word)
    return own, flags


def _asked(given: ReproduceArguments, flags: list[str]) -> Asked:
    assert given.table is not None, "without a table there is nothing to ask for"
    record.check_table(given.table)
    count = TABLES[given.table].seeds if given.seeds is None else given.seeds
    for name, value in (("--seeds", count), ("--at-once", given.at_once)):
        if value is not None:
            read_count(name, str(value))
    if given.seed < 0:
        raise UserError(f"--seed {given.seed}: a seed is a whole number from 0.")
    asked = Asked(
        table=given.table,
        flags=flags,
        plugins=list(plugins.loaded()),
        only=list(given.only),
        seeds=list(range(given.seed, given.seed + count)),
        skip_missing=given.skip_missing,
    )
    record.check_rows(asked)
    return asked


def _possible(asked: Asked, runs: Mapping[str, Wanted]) -> list[Wanted]:
    """The runs whose data are here. Raises UserError where others are not to be left out, or there is none."""
    missing = missing_in(runs)
    if missing and not asked.skip_missing:
        commands = ", ".join(f"`launch prepare {name}`" for name in missing)
        raise UserError(
            f"{asked.table} needs data that are not prepared here: {commands}. Or leave their rows out with "
            "--skip-missing, or choose others with --only."
        )
    if missing and all(run.missing for run in runs.values()):
        raise UserError(f"{asked.table}: none of its data sets is prepared here ({', '.join(missing)}).")
    return [run for run in runs.values() if run.missing is None]


def _carry_out(
    asked: Asked, runs: Mapping[str, Wanted], folder: Path, at_once: int | None, console: Console, aside: Console
) -> int:
    here = _possible(asked, runs)
    works = work_of(here)
    with held(folder):
        files = Files(asked, runs, folder)
        record.check_commands(folder, files.commands)
        jobs: list[Job] = []
        for seed in asked.seeds:  # the whole table with one seed first
            found = (job_of(folder / run.folder(seed), asked.command(run, seed), works[run.name].needs) for run in here)
            jobs += [job for job in found if job is not None]
        if finished := len(here) * len(asked.seeds) - len(jobs):
            say(aside, f"{counted(finished, 'run')} of before: finished, and not run again")
        files.note()
        stopped = run_all(jobs, at_once=at_once, aside=aside, note=files.note)
        rows = files.note()
        console.print()
        print_report(console, title_of(asked), asked.of, rows, files.sentences)
        files.draw(rows)
        say(console, f"folder: {folder}")
        if all(row.whole for row in rows if runs[row.entry.run].missing is None):
            return 0
        say(console, f"go on with: launch resume {folder}")
        return INTERRUPTED if stopped else 1


def _print_list(console: Console) -> None:
    """Every table, and what it takes with one seed."""
    shown = Table("table", "what it measures", "in the paper", "runs a seed", "their epochs", title_justify="left")
    shown.title = "Tables: launch reproduce TABLE"
    shown.columns[0].no_wrap = True
    for name, table in TABLES.items():
        runs = {text for entry in table.entries for text in (entry.run, entry.against) if text is not None}
        epochs = sum(map(epochs_of, runs))
        shown.add_row(name, table.title, _reported(table), f"{len(runs)}", f"{epochs:,}")
    console.print(shown)
    say(console, "`launch reproduce TABLE --dry-run` prints the grid, the commands and how many images that is.")


def _reported(table: PaperTable) -> str:
    found = []
    for name, measure in table.measured:
        values = [entry.paper[name] for entry in table.entries if name in entry.paper]
        if values:
            found.append(f"{measure.heading} {measure.shown(min(values))} to {measure.shown(max(values))}")
    return "; ".join(found) or "–"


def _print_plan(asked: Asked, runs: Mapping[str, Wanted], folder: Path, console: Console) -> None:
    """What would run."""
    table = asked.of
    print_report(console, title_of(asked), table, rows_of(table, asked.entries, runs, asked.seeds, folder), [])
    for seed in asked.seeds:
        for run in runs.values():
            typed = [*asked.command(run, seed), "--run-dir", str(folder / run.folder(seed))]
            say(console, f"launch {shlex.join(typed)}")
    for sentence in sentences_of(asked, runs):
        say(console, sentence)
    here, seeds = [run for run in runs.values() if run.missing is None], len(asked.seeds)
    works = work_of(here).values()
    epochs, images = seeds * sum(work.epochs for work in works), seeds * sum(work.images for work in works)
    waiting = seeds * (len(runs) - len(here))
    say(
        console,
        f"{counted(seeds * len(here), 'run')} of {epochs:,} epochs, {images:,} training images in all, each counted "
        "once whatever the number of views. `launch plan PRESET --measure` says how many a second are learned.",
    )
    if waiting:
        commands = ", ".join(f"`launch prepare {name}`" for name in missing_in(runs))
        say(console, f"{counted(waiting, 'more run')} when their data are here: {commands}.")
    say(console, f"Folder: {folder}. Nothing was started (--dry-run).")
