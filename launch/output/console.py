"""The one console that every command prints to, and how sentences reach it."""

from __future__ import annotations

import os
import re
import sys
from typing import IO

from rich.console import Console
from rich.text import Text

# Those of ASCII and of ISO 8859, ends of lines and changes of direction in Unicode.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_PIPED_WIDTH = 120  # columns, where the output is no terminal and COLUMNS does not say


def make_console(file: IO[str] | None = None, *, quiet: bool = False) -> Console:
    """A console for standard output, or for another text stream.

    A terminal's width is its own; elsewhere it is ``$COLUMNS``, else 120. With ``NO_COLOR`` set nothing is styled at
    all: rich itself would keep bold and dim. A quiet one prints nothing.
    """
    stream = sys.stdout if file is None else file
    width = None
    if not stream.isatty() and not os.environ.get("COLUMNS", "").isdecimal():
        width = _PIPED_WIDTH
    if os.environ.get("NO_COLOR"):
        return _Enduring(file=file, width=width, quiet=quiet, color_system=None)
    return _Enduring(file=file, width=width, quiet=quiet)


class _Enduring(Console):
    """Whose reader may go, as in `launch … | head`: it prints nothing more. rich itself would end the program."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())  # what is in a buffer, and what others still write, goes there
        os.close(nowhere)
        if self.file is not sys.stderr:
            warn("nobody reads the standard output any more: nothing more is printed there.")


def printable(text: str, *, keep: str = "") -> str:
    """A text with its control characters spelt out, as in "\\x1b": a terminal obeys them, wherever they come from.

    Args:
        keep: those that stay, such as a line's end.
    """
    return _CONTROLS.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def say(console: Console, text: str, *, style: str = "") -> None:
    """Prints a sentence as it is: no markup, no highlighting, and no control characters but the ends of lines.

    On a terminal it breaks between words; elsewhere it stays one line, as whoever reads it with a program expects.
    """
    console.print(Text(printable(text, keep="\n\t"), style=style), soft_wrap=not console.is_terminal)


def warn(text: str) -> None:
    """A sentence that a person should see even where output is piped away."""
    say(make_console(sys.stderr), f"warning: {text}")


def counted(count: int, noun: str, nouns: str | None = None) -> str:
    """A count with its noun: "1 epoch", "1,797 images". ``nouns`` is the plural where it takes more than an s."""
    return f"{count:,} {noun if count == 1 else nouns or f'{noun}s'}"
