"""Tables for a person: side by side where they fit, otherwise a block of lines per row. No figure is ever cut."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.output.console import printable

_GAP = 3  # columns between two of a table


def print_table(
    console: Console,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    left: Collection[str] = (),
) -> None:
    """Prints rows of cells, figures to the right.

    Args:
        left: headings of the columns that hold words, which stand to the left.
    """
    if not rows:
        return
    columns = list(zip(headings, *rows, strict=True))
    # A heading may break between words, a cell may not.
    widths = [max(*(cell_len(cell) for cell in cells), *map(cell_len, heading.split())) for heading, *cells in columns]
    left_over = console.width - sum(widths) - _GAP * (len(widths) - 1)
    if left_over < 0:
        _print_stacked(console, headings, rows, title)
        return
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for heading, width in zip(headings, widths, strict=True):
        # Every width is said: where a table is too wide by a little, rich takes from the widest column, though its
        # figures need the room, and min_width does not keep it from that.
        wider = min(left_over, max(0, cell_len(heading) - width))
        left_over -= wider
        table.add_column(heading, justify="left" if heading in left else "right", width=width + wider)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


def _print_stacked(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]], title: str | None) -> None:
    if title:
        console.print(Text(title, style="italic"))
    for row in rows:
        console.print(Text(printable(f"{headings[0]} {row[0]}"), style="bold"))
        for heading, cell in zip(headings[1:], row[1:], strict=True):
            console.print(Text(printable(f"  {heading}: {cell}")))
