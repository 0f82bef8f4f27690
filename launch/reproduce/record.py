"""What the folder of a reproduced table holds.

reproduce.json  what was asked for, from which it goes on, the command of every run, and the table's figures
table.md        the table beside the paper's, ready to paste
table.csv       the same with every digit
table.png, .svg the picture, of tables that have one
NAME/           a run folder for each run and seed, as `launch` leaves it
NAME.log        what that run printed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter

from launch.command_line.parse import unknown
from launch.output.run_folder import REPRODUCTION, write_json
from launch.reproduce.grid import Wanted
from launch.reproduce.results import Row
from launch.reproduce.table import Entry, Table
from launch.reproduce.tables import TABLES
from pipeline import plain_json
from pipeline.errors import UserError
from pipeline.registry import STRICT

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked for.

    Attributes:
        table: its name.
        flags: of every run.
        plugins: of every run.
        only: texts that the labels of a row have, all of them; none: every row.
        skip_missing: rows whose data set is not prepared are left out.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    table: str
    flags: list[str]
    plugins: list[str]
    only: list[str]
    seeds: list[int]
    skip_missing: bool
    format: int = field(default=_FORMAT)

    @property
    def of(self) -> Table:
        """The table."""
        return TABLES[self.table]

    def command(self, run: Wanted, seed: int) -> list[str]:
        """What follows `launch` for a run with a seed, but for where it goes."""
        return [*run.command(seed), *(word for plugin in self.plugins for word in ("--plugin", plugin))]

    @property
    def entries(self) -> list[Entry]:
        """The rows that are wanted."""
        wanted = [text.casefold() for text in self.only]
        return [entry for entry in self.of.entries if all(text in " ".join(entry.labels).casefold() for text in wanted)]


_ASKED = TypeAdapter(Asked)


def check_table(name: str) -> None:
    """Raises UserError where there is no such table."""
    if name not in TABLES:
        raise UserError(unknown(name, TABLES, "table", listed_by="launch reproduce --list"))


def check_rows(asked: Asked) -> None:
    """Raises UserError where the table has no such row."""
    if not asked.entries:
        rows = "; ".join(dict.fromkeys(" ".join(entry.labels) for entry in asked.of.entries))
        raise UserError(f"--only {' '.join(asked.only)}: {asked.table} has no such row. It has: {rows}.")


def write(folder: Path, asked: Asked, commands: Mapping[str, str], rows: Sequence[Row]) -> None:
    """Writes reproduce.json. Raises OSError where that cannot be.

    Args:
        commands: what is typed for each run, by the run's folder.
    """
    found = [
        {
            **dict(zip(asked.of.headings, row.entry.labels, strict=True)),
            "runs": row.state,
            **{
                name: {
                    "values": list(figure.values),
                    "mean": figure.mean,
                    "deviation": figure.deviation,
                    "paper": figure.paper,
                    "difference": figure.difference,
                }
                for name, figure in row.figures.items()
            },
        }
        for row in rows
    ]
    write_json(folder / REPRODUCTION, {**_ASKED.dump_python(asked), "commands": dict(commands), "rows": found})


def read(folder: Path) -> Asked:
    """What a folder was made for. Raises UserError where it cannot be read, or is of a table that there is no more."""
    file = folder / REPRODUCTION
    try:
        values: Any = plain_json.read(file)
        asked = _ASKED.validate_python({one.name: values[one.name] for one in fields(Asked)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: cannot be read ({reason}). Give a folder that `launch reproduce` left.") from error
    if asked.format != _FORMAT:
        raise UserError(f"{file}: format {asked.format}; this version reads {_FORMAT}.")
    if not asked.seeds:
        raise UserError(f"{file}: has no seeds. Give a folder that `launch reproduce` left.")
    check_table(asked.table)
    check_rows(asked)
    return asked


def check_commands(folder: Path, now: Mapping[str, str]) -> None:
    """Raises UserError where a run of the folder was begun by another command than it would be now.

    So it is where the table has been changed since.

    Args:
        now: what is typed for each run, by the run's folder.
    """
    if not (folder / REPRODUCTION).is_file():
        return
    before = plain_json.read(folder / REPRODUCTION).get("commands")
    for name, command in (before if isinstance(before, dict) else {}).items():
        if now.get(name, command) != command:
            raise UserError(
                f"{folder}: {name} was begun as `{command}`, and the table has `{now[name]}` now. Give a new folder."
            )


def extended(before: Asked, now: Asked, folder: Path) -> Asked:
    """A table that goes on in its folder, with the seeds that have come.

    Raises:
        UserError: it is another one, or the same with other flags.
    """
    for name in ("table", "flags", "plugins", "only"):
        if getattr(before, name) != getattr(now, name):
            raise UserError(
                f"--run-dir {folder}: holds {' '.join([before.table, *before.only, *before.flags])}. Give a new "
                "folder, or only more seeds."
            )
    seeds = list(dict.fromkeys([*before.seeds, *now.seeds]))
    return Asked(
        table=now.table, flags=now.flags, plugins=now.plugins, only=now.only, seeds=seeds, skip_missing=now.skip_missing
    )
