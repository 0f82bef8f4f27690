"""`launch help` and `launch list`: what there is to launch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.table import Table

from launch.command_line.help import EXIT_STATUSES
from launch.output.console import say
from launch.output.data_lines import print_data_sets
from launch.presets import PRESETS


class _Described(Protocol):
    @property
    def usage(self) -> str: ...

    @property
    def about(self) -> str: ...


def print_overview(console: Console, commands: Mapping[str, _Described]) -> None:
    """Every preset and every command, in a line each."""
    for line in (
        "usage: launch PRESET [flags]",
        "       launch --config RUN/config.json [flags]",
        "       launch COMMAND …",
        "       --plugin FILE.py before or behind any of them: methods, nets and presets of your own",
        "",
        "`launch help NAME` says more about a preset or a command. To begin with: launch cff-vit",
        "",
    ):
        say(console, line)
    rows = [(name, preset.title) for name, preset in PRESETS.items()]
    rows += [("", "")] + [(f"{name} {command.usage}".rstrip(), command.about) for name, command in commands.items()]
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, about in rows:
        table.add_row(f"  {name}", about)
    console.print(table, highlight=False, markup=False)
    console.print()
    say(console, "--version prints versions. " + EXIT_STATUSES)


def print_list(console: Console, data_dir: Path | None) -> None:
    """Presets with the paper's figures, and data sets with whether they are prepared here."""
    table = Table(
        "preset", "what it trains", "in the paper, %", title="Presets: launch PRESET [--help]", title_justify="left"
    )
    table.columns[0].no_wrap = True
    for name, preset in PRESETS.items():
        table.add_row(name, preset.title, preset.reported)
    console.print(table)
    print_data_sets(console, data_dir)
