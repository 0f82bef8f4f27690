"""A process of its own that answers questions: what it holds and measures is nobody else's."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from pipeline.errors import StageFailedError

_CONTEXT = multiprocessing.get_context("spawn")
_LEAVE = 5.0  # seconds that the process has to end by itself

Answer = Callable[[Any], Any]


class Child:
    """A spawned process. It calls ``make(argument)`` once, and what that returns with every question.

    All three travel by pickle. The process waits for questions without using the CPU.

    Raises:
        StageFailedError: also from ``ask``: it failed or died; the message names it and what it said.
    """

    def __init__(self, name: str, make: Callable[[Any], Answer], argument: Any) -> None:
        self._name = name
        self._line, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_live, args=(theirs, make, argument), name=name, daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._hear()
        except BaseException:
            self.close()
            raise

    def ask(self, question: Any) -> Any:
        """The answer. Waits for it."""
        self._line.send(question)
        return self._hear()

    def close(self) -> None:
        """Ends the process. May be called twice."""
        self._line.close()
        self._process.join(_LEAVE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _hear(self) -> Any:
        wait([self._line, self._process.sentinel])
        try:
            went_well, said = self._line.recv()
        except EOFError:
            self._process.join()
            raise StageFailedError(f"{self._name} died with exit status {self._process.exitcode}") from None
        if not went_well:
            raise StageFailedError(f"{self._name} failed: {said}")
        return said


def _live(line: Connection, make: Callable[[Any], Answer], argument: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; who asks the questions ends us
    try:
        answer = make(argument)
        line.send((True, None))
        while True:
            line.send((True, answer(line.recv())))
    except EOFError:
        return  # nobody asks any more
    except Exception as error:  # noqa: BLE001 (whatever it is, who asked is told)
        line.send((False, f"{type(error).__name__}: {error}"))
