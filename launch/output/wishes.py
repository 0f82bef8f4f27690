"""How another command asks something of a run that goes on, such as a checkpoint (`launch checkpoint RUN`): by a file
in its folder, also from another machine that sees it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from launch.output.whole_file import write_whole
from pipeline.errors import UserError
from pipeline.telemetry.trace import TraceWish

CHECKPOINT_WISH, TRACE_WISH = ".checkpoint-asked", ".trace-asked"
"""In a run folder: by which a checkpoint, and a trace, are asked for."""

_LOOK = 0.1  # seconds between two looks


class Wishes:
    """Wishes of one kind, as the run hears them.

    Args:
        file: by which they come.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._heard = False

    def asked(self) -> str | None:
        """What somebody asks for. Told once for each wish."""
        if self._heard or not self._file.exists():
            return None
        try:
            text = self._file.read_text(errors="replace")
        except OSError:  # whoever asked no longer does
            return None
        self._heard = True
        return text

    def forget(self) -> None:
        """What was heard came to nothing, and is to be told again."""
        self._heard = False

    def granted(self) -> None:
        """What was asked for is there."""
        if self._heard:
            self._heard = False
            self._file.unlink(missing_ok=True)


def trace_wish(wish: TraceWish) -> str:
    """A wish for a trace as it is written down."""
    return f"{wish.steps} {wish.profiled}"


def read_trace_wish(text: str) -> TraceWish | None:
    """A wish that was written down so. None where it was not."""
    found = re.fullmatch(r"(\d{1,6}) (\d{1,6})", text)
    return TraceWish(int(found[1]), int(found[2])) if found else None


def ask(file: Path, text: str, seconds: float, *, goes_on: Callable[[], bool], missing: str, hint: str) -> None:
    """Asks a run for something, and waits until it is there.

    Args:
        goes_on: whether the run does.
        missing: what there is not, in the error.
        hint: what to do where it is not there after so many seconds.

    Raises:
        UserError: it does not come.
    """
    write_whole(file, text)
    end = time.monotonic() + seconds
    try:
        while file.exists():
            if not goes_on() and file.exists():  # in this order: what is granted last is granted
                raise UserError(f"{missing}: the run ended before that.")
            if time.monotonic() > end:
                raise UserError(f"{missing} within {seconds:g} s. {hint}")
            time.sleep(_LOOK)
    finally:
        file.unlink(missing_ok=True)
