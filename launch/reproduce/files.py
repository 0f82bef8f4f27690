"""Keeps a folder's reproduce.json, table and picture as its runs are, and says what has to be known to read them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

from launch.command_line.parse import most_steps
from launch.output.console import counted, warn
from launch.output.pictures.style import write as write_figure
from launch.output.whole_file import write_whole
from launch.reproduce import record
from launch.reproduce.grid import Wanted, missing_in, numbers, own_data, wanted
from launch.reproduce.picture import draw
from launch.reproduce.record import Asked
from launch.reproduce.report import as_csv, markdown
from launch.reproduce.results import Row, rows_of

_LINE = 110  # letters above a picture


class Files:
    """Writes what the runs of a table came to. What cannot be written is said, and the runs go on.

    Attributes:
        commands: what is typed for each run, by its folder.
        sentences: what has to be known to read the table.
    """

    def __init__(self, asked: Asked, runs: Mapping[str, Wanted], folder: Path) -> None:
        self._asked, self._runs, self._folder = asked, runs, folder
        self.sentences = sentences_of(asked, runs)
        self.commands = {
            run.folder(seed): shlex.join(["launch", *asked.command(run, seed)])
            for seed in asked.seeds
            for run in runs.values()
            if run.missing is None
        }

    def note(self) -> list[Row]:
        """Writes the table as it is now. Returns its rows."""
        asked, folder = self._asked, self._folder
        rows = rows_of(asked.of, asked.entries, self._runs, asked.seeds, folder)
        try:
            record.write(folder, asked, self.commands, rows)
            write_whole(folder / "table.md", markdown(title_of(asked), asked.of, rows, self.sentences))
            write_whole(folder / "table.csv", as_csv(asked.of, rows))
        except OSError as error:
            warn(f"{folder}: the table is not written there ({error.strerror}). Its runs go on.")
        return rows

    def draw(self, rows: Sequence[Row]) -> None:
        """Draws it, where it is one that has a picture."""
        if not self._asked.of.picture:
            return
        title = "\n".join(line for text in (title_of(self._asked), self.sentences[0]) for line in wrap(text, _LINE))
        try:
            write_figure(draw(title, self._asked.of, rows), self._folder / "table.png", "svg")
        except OSError as error:
            warn(f"{self._folder}: the picture is not written there ({error.strerror}).")


def title_of(asked: Asked) -> str:
    """Of the table."""
    return f"{asked.table}: {asked.of.title} ({asked.of.where})"


def sentences_of(asked: Asked, runs: Mapping[str, Wanted]) -> list[str]:
    """What has to be known to read the table: what it lacks of the paper's first."""
    table, said = asked.of, []
    if _is_changed(asked, runs):
        beside = ", which is not the paper's budget" if table.source is not None else ""
        said.append(f"Every run was given {shlex.join(asked.flags)}{beside}.")
    if (steps := most_steps()) is not None:
        said.append(f"Cut short after {counted(steps, 'step')} (LOCALPIPE_MAX_STEPS): figures say only that it works.")
    here = {run.settings.data.data for text, run in runs.items() if run.settings.data.data != own_data(text)}
    if here:
        figures = "" if table.source is None else " The paper's figures are left out."
        said.append(f"On {', '.join(sorted(here))}, though rows keep their names in the table.{figures}")
    if asked.only:
        said.append(f"Only rows with {' and '.join(map(repr, asked.only))}.")
    if missing := missing_in(runs):
        said.append(f"Left out for want of data: {', '.join(missing)}.")
    first, last = asked.seeds[0], asked.seeds[-1]
    said.append(f"Seed {first}." if first == last else f"Seeds {first} to {last}: mean ± standard deviation.")
    return [*said, *table.notes]


def _is_changed(asked: Asked, runs: Mapping[str, Wanted]) -> bool:
    """Whether the flags of all runs change a figure of some run."""
    if not asked.flags:
        return False
    plain = wanted(asked.entries, [], first_seed=asked.seeds[0])
    return any(numbers(run.settings) != numbers(plain[text].settings) for text, run in runs.items())
