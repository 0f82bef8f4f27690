"""What `--help` prints: the flags that matter first, or with `--help-all` every one, in the width that there is."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console
from rich.text import Text

from launch.command_line.flags import Flag
from launch.output.console import counted

HELP = ("-h", "--help")
HELP_ALL = "--help-all"

EXIT_STATUSES = (
    "Exit status: 0 done; 1 the run failed, what was learned is kept; 2 a mistake in what was asked, nothing was "
    "started; 130 stopped by Ctrl-C, SIGTERM or SIGHUP, the best weights so far are kept."
)

_NARROW = 72  # columns; below that texts stand under their flags
_LEFT = 30  # columns of the flags beside their texts


@dataclass(frozen=True, kw_only=True)
class Page:
    """The help of one command.

    Attributes:
        usage: the command with its arguments, a line each.
        about: paragraphs; lines that are indented stay as they are.
        flags: all of them.
        first: names of those that the short help shows; None shows all.
        after: paragraphs below the flags.
    """

    usage: Sequence[str]
    about: str
    flags: Sequence[Flag]
    first: Collection[str] | None = None
    after: Sequence[str] = ()


def print_page(console: Console, page: Page, *, whole: bool) -> None:
    """Prints a command's help; ``whole`` with every flag."""
    for number, line in enumerate(page.usage):
        _print(console, f"{'       ' if number else 'usage: '}{line}")
    for paragraph in page.about.strip().split("\n\n"):
        console.print()
        _print_paragraph(console, paragraph)
    if page.first is not None and not whole:
        by_name = {flag.name: flag for flag in page.flags}
        shown = [by_name[name] for name in page.first if name in by_name]
        console.print()
        _print_flags(console, shown)
        console.print()
        _print(console, f"{HELP_ALL} shows {counted(len(page.flags) - len(shown), 'more flag')}.")
    else:
        for heading, flags in groupby(page.flags, lambda flag: flag.group):
            console.print()
            if heading:
                _print(console, heading, style="bold")
            _print_flags(console, flags)
    for paragraph in page.after:
        console.print()
        _print(console, paragraph)


def _print_paragraph(console: Console, paragraph: str) -> None:
    """Running text breaks where the console does; indented lines are tables and stay as they are."""
    for indented, lines in groupby(paragraph.splitlines(), lambda line: line.startswith(" ")):
        for line in lines if indented else [" ".join(lines)]:
            if indented:
                console.print(Text(line))
            else:
                _print(console, line)


def _print_flags(console: Console, flags: Iterable[Flag]) -> None:
    for flag in flags:
        shown = flag.default is not None and flag.switch != "yes"
        text = f"{flag.text} [{flag.default}]" if shown else flag.text
        usage = f"  {flag.usage}"
        narrow = console.width < _NARROW
        indent = " " * (8 if narrow else _LEFT)
        if narrow or len(usage) > _LEFT - 2:
            console.print(Text(usage))
            _print(console, text, first=indent, indent=indent)
        else:
            _print(console, text, first=usage.ljust(_LEFT), indent=indent)


def _print(console: Console, text: str, *, style: str = "", first: str = "", indent: str = "") -> None:
    """A paragraph, broken between words."""
    lines = textwrap.fill(text, console.width, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)
    console.print(Text(lines, style=style))
