"""The table of a sweep: a row for each point, figures over its seeds; and what the best two say of each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from rich.console import Console

from launch.output.console import say
from launch.output.seeds import difference, mean_and_deviation
from launch.output.tables import print_table
from launch.sweep.record import Row, ranked

_SHOWN: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("test accuracy", "test_accuracy", lambda value: f"{value:.2%}"),
    ("images/s", "images_per_second", lambda value: f"{value:,.0f}"),
    ("speed-up", "measured_speedup", lambda value: f"{value:.2f}"),
    ("seconds", "seconds", lambda value: f"{value:,.0f}"),
)


def print_rows(console: Console, rows: Sequence[Row]) -> None:
    """Prints the table, and below it whether the best point is better than the next one by more than chance."""
    axes = list(rows[0].point.values)
    headings = [*axes, "seeds", *(heading for heading, _, _ in _SHOWN)]
    cells = [
        [
            *row.point.values.values(),
            _seeds(row),
            *(mean_and_deviation(row.values(figure), shown) for _, figure, shown in _SHOWN),
        ]
        for row in rows
    ]
    print_table(console, headings, cells, left=(*axes, "seeds"))
    best = ranked(rows)
    if axes and best:
        say(console, f"best: {best[0].point.name}")
    if len(best) > 1 and all(len(row.values("test_accuracy")) > 1 for row in best[:2]):
        sample, base = (row.values("test_accuracy") for row in best[:2])
        say(console, difference(best[0].point.name, best[1].point.name, sample, base))


def _seeds(row: Row) -> str:
    """ "3", or where not all have finished "1 of 3 (1 failed, 1 not begun)"."""
    counts = Counter(run.status for run in row.runs)
    finished = counts.pop("finished", 0)
    if not counts:
        return str(finished)
    others = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"{finished} of {len(row.runs)} ({others})"
