"""The commands that the documents print, taken out of their text as they stand."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/*.md")
"""Where commands are printed; patterns below the root."""

PROGRAMS = ("launch", "make", "pip", "tensorboard", "ray", "docker", "eval", "git", "python")
"""What a line of a block without language begins with, if it is a command."""

MARK = re.compile(r"\((needs a cluster|needs a GPU|needs the network)\)")
"""In a line's comment: why nobody runs it here."""

_SHELL = ("", "sh", "bash", "console")
_FENCE = re.compile(r"^```(\w*)\s*$")


@dataclass(frozen=True)
class Printed:
    """A command as a document prints it, or a block of Python.

    Attributes:
        document: its path below the root.
        line: where it stands, from 1.
        text: the command without its comment, or the block.
        reason: why it is not run here; "" where it is.
        python: whether it is a block of Python.
    """

    document: str
    line: int
    text: str
    reason: str = ""
    python: bool = False

    def __str__(self) -> str:
        text = "python block" if self.python else self.text
        return f"{self.document}:{self.line}: {text}"


def documents() -> list[Path]:
    """Every document that may print a command: the README first, then the others by their paths."""
    found = {path for pattern in DOCUMENTS for path in ROOT.glob(pattern)}
    return sorted(found, key=lambda path: (path != ROOT / "README.md", path))


def commands_of(text: str, document: str) -> list[Printed]:
    """Commands and Python blocks of a document's text, in their order."""
    found: list[Printed] = []
    language: str | None = None
    block: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        fence = _FENCE.match(line.strip())
        if language is None:
            if fence:
                language, block = fence[1], []
        elif line.strip() == "```":
            found += _of_block(language, block, document)
            language = None
        else:
            block.append((number, line))
    assert language is None, f"{document}: a block is not closed"
    return found


def _of_block(language: str, block: list[tuple[int, str]], document: str) -> list[Printed]:
    if language == "python":
        source = "\n".join(line for _, line in block)
        mark = MARK.search(source)
        return [Printed(document, block[0][0], source, mark[1] if mark else "", python=True)]
    if language not in _SHELL:
        return []
    found = []
    joined: list[tuple[int, str]] = []
    for number, line in block:
        if joined and joined[-1][1].endswith("\\"):
            joined[-1] = (joined[-1][0], f"{joined[-1][1][:-1].rstrip()} {line.strip()}")
        else:
            joined.append((number, line.rstrip()))
    for number, line in joined:
        command, comment = _split(line.removeprefix("$ "))
        if command.split(" ")[0] in PROGRAMS:
            mark = MARK.search(comment)
            found.append(Printed(document, number, command, mark[1] if mark else ""))
    return found


def _split(line: str) -> tuple[str, str]:
    """A line's command and its comment."""
    command, separator, comment = line.partition(" #")
    return command.strip(), comment if separator else ""


def inline_commands(text: str) -> list[list[str]]:
    """Commands of `launch` that a document names in running text, as lists of arguments, without those with gaps."""
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    named = [" ".join(span.split()) for span in re.findall(r"`(launch [^`]+)`", outside)]
    return [shlex.split(span)[1:] for span in named if not re.search(r"…|[A-Z]{3,}|\.\.\.", span)]
