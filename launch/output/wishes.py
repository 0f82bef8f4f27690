"""How `launch checkpoint RUN` reaches the run: by a file in its folder, also from another machine that sees it."""

from __future__ import annotations

import time
from pathlib import Path

from pipeline.errors import UserError

_ASKED = ".asked"
_LOOK = 0.1  # seconds between two looks


class Wishes:
    """Wishes for a checkpoint, as the run hears them.

    Args:
        folder: of the run's checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / _ASKED
        self._heard = False

    def asked(self) -> bool:
        """Whether somebody asks for a checkpoint. True once for each wish."""
        if self._heard or not self._file.exists():
            return False
        self._heard = True
        return True

    def granted(self) -> None:
        """A checkpoint is whole."""
        if self._heard:
            self._heard = False
            self._file.unlink(missing_ok=True)


def ask(folder: Path, seconds: float) -> None:
    """Asks a run that goes on for a checkpoint, and waits until it is whole.

    Raises:
        UserError: it is not after so many seconds.
    """
    file = folder / _ASKED
    folder.mkdir(parents=True, exist_ok=True)
    file.touch()
    end = time.monotonic() + seconds
    while file.exists():
        if time.monotonic() > end:
            file.unlink(missing_ok=True)
            raise UserError(
                f"{folder}: no checkpoint within {seconds:g} s. The run saves between two training batches; ask again "
                "once it trains."
            )
        time.sleep(_LOOK)
