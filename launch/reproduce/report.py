"""The table beside the paper's: on the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich.console import Console

from launch.output.console import say
from launch.output.seeds import mean_and_deviation
from launch.output.tables import print_table
from launch.reproduce.results import Figure, Row
from launch.reproduce.table import Table

PAPER, DIFFERENCE, RUNS = "paper", "difference", "runs"


def _compared(table: Table) -> set[str]:
    """Measures for which the paper has a figure in some row."""
    return {name for entry in table.entries for name in entry.paper}


def headings(table: Table) -> list[str]:
    """Of the columns."""
    compared, found = _compared(table), list(table.headings)
    for name, measure in table.measured:
        found += [measure.heading, *([PAPER, DIFFERENCE] if name in compared else [])]
    return [*found, RUNS]


def cells(table: Table, row: Row) -> list[str]:
    """A row's columns as text."""
    compared, found = _compared(table), list(row.entry.labels)
    for name, figure in row.figures.items():
        found.append(mean_and_deviation(figure.values, figure.measure.shown))
        if name in compared:
            found += [_shown(figure, figure.paper), _difference(figure)]
    return [*found, row.state]


def _shown(figure: Figure, value: float | None) -> str:
    return "–" if value is None else figure.measure.shown(value)


def _difference(figure: Figure) -> str:
    return "–" if figure.difference is None else figure.measure.difference(figure.difference)


def print_report(console: Console, title: str, table: Table, rows: Sequence[Row], sentences: Sequence[str]) -> None:
    """Prints the table and what has to be known to read it."""
    columns = headings(table)
    print_table(console, columns, [cells(table, row) for row in rows], title=title, left=(*table.headings, RUNS))
    for sentence in sentences:
        say(console, sentence)


def markdown(title: str, table: Table, rows: Sequence[Row], sentences: Sequence[str]) -> str:
    """The same, ready to paste."""
    columns = headings(table)
    words = {*table.headings, RUNS}
    lines = [
        f"# {title}",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'|'.join('---' if column in words else '---:' for column in columns)}|",
        *(f"| {' | '.join(cells(table, row))} |" for row in rows),
    ]
    return "\n".join([*lines, "", *(f"{sentence}  " for sentence in sentences), ""])


def as_csv(table: Table, rows: Sequence[Row]) -> str:
    """The same with every digit."""
    compared = _compared(table)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*table.headings, *_csv_columns(table, compared), "seeds", RUNS])
    for row in rows:
        values: list[float | None] = []
        for name, figure in row.figures.items():
            values += [figure.mean, figure.deviation]
            values += [figure.paper, figure.difference] if name in compared else []
        seeds = max((len(figure.values) for figure in row.figures.values()), default=0)
        writer.writerow([*row.entry.labels, *values, seeds, row.state])
    return text.getvalue()


def _csv_columns(table: Table, compared: set[str]) -> list[str]:
    return [
        f"{name}_{what}"
        for name in table.measures
        for what in ("mean", "deviation", *((PAPER, DIFFERENCE) if name in compared else ()))
    ]
