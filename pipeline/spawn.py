"""A process of its own that answers questions: what it holds and measures is nobody else's.

A fresh process makes something that answers, and then answers one question after the other through a pipe, sleeping in
between. ``concurrent.futures.ProcessPoolExecutor`` and ``torch.multiprocessing.spawn`` are not used, as a task there
cannot keep anything for the next one, or cannot be asked again, and neither says which process died and can end the
others at once; ``multiprocessing`` itself is below this.
"""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from pipeline.errors import RunError, StageFailedError

_Question = TypeVar("_Question")
_Answer = TypeVar("_Answer")


class ChildFailedError(StageFailedError):
    """A process raised an error. The message names the process and what it raised.

    Attributes:
        error: what it raised, with its causes.
        said: the same in words: "ValueError: not so".
    """

    error: BaseException
    said: str


class ChildDiedError(StageFailedError):
    """A process ended without a word. The message names it.

    Attributes:
        exit_status: negative: the number of the signal that ended it.
        how: "by signal SIGKILL" or "with exit status 1".
    """

    exit_status: int
    how: str


class Child(Generic[_Question, _Answer]):
    """A process that calls ``make(*arguments)`` once, and what that returns with every question.

    All of them travel by pickle. Creating it does not wait: questions do. Ctrl-C in a terminal reaches the whole group
    of processes; this one leaves it to whoever asks. A context manager: on leaving it the process is gone.

    Args:
        name: whose, in messages and in lists of processes.
        context: how processes start here; None: spawned, so that nothing of this one is in them.
    """

    def __init__(
        self,
        name: str,
        make: Callable[..., Callable[[_Question], _Answer]],
        *arguments: Any,
        context: BaseContext | None = None,
    ) -> None:
        start = context or multiprocessing.get_context("spawn")
        self.name = name
        self._line, theirs = start.Pipe()
        # A context that starts processes has the class; the type of all contexts does not say so.
        self._process = start.Process(  # type: ignore[attr-defined]
            target=_live, args=(theirs, make, arguments), name=name, daemon=True
        )
        try:
            self._process.start()
        except BaseException:
            self._line.close()
            raise
        finally:
            theirs.close()  # so that the line breaks where the process dies

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, question: _Question) -> _Answer:
        """The answer; waits for it. Raises as ``receive``."""
        self.send(question)
        return self.receive()

    def send(self, question: _Question) -> None:
        """Asks without waiting. Of a dead process ``receive`` tells."""
        with suppress(OSError):
            self._line.send(question)

    def receive(self) -> _Answer:
        """The answer to the first question that has none yet; waits for it.

        Raises:
            ChildFailedError: the process raised an error.
            ChildDiedError: it died.
        """
        answered, value = self._hear()
        if answered:
            answer: _Answer = value
            return answer
        said, causes = value
        for error, cause in itertools.pairwise(causes):
            error.__cause__ = cause
        failure = ChildFailedError(f"{self.name} failed: {said}")
        failure.error, failure.said = causes[0], said
        raise failure from causes[0]

    def close(self) -> None:
        """Ends the process at once, whatever it does. May be called twice."""
        self._process.kill()
        self._process.join()
        self._line.close()

    @property
    def signs(self) -> tuple[Any, Any]:
        """What ``multiprocessing.connection.wait`` takes: ready where the process has said something or died."""
        return self._line, self._process.sentinel

    def _hear(self) -> tuple[bool, Any]:
        wait(self.signs)
        with suppress(EOFError, OSError):  # it died, perhaps amid its words
            if self._line.poll():
                heard: tuple[bool, Any] = self._line.recv()
                return heard
        self._process.join()
        status = self._process.exitcode
        how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
        death = ChildDiedError(f"{self.name} died {how}")
        death.exit_status, death.how = status, how
        raise death


def ready(children: Iterable[Child[_Question, _Answer]], timeout: float | None) -> list[Child[_Question, _Answer]]:
    """Those of which ``receive`` will not wait: they have answered, failed or died. Waits so many seconds for one."""
    signs = {sign: child for child in children for sign in child.signs}
    return list(dict.fromkeys(signs[sign] for sign in wait(list(signs), timeout)))


def ask_all(
    children: Sequence[Child[_Question, _Answer]], question: _Question, *, timeout: float | None = None
) -> list[_Answer]:
    """Asks all of them at once. Their answers, in the order of ``children``.

    Args:
        timeout: seconds in which the next of them must answer.

    Raises:
        ChildFailedError, ChildDiedError: of the first that fails or dies; the others are not waited for.
        TimeoutError: none said anything for so long.
    """
    for child in children:
        child.send(question)
    answers: dict[Child[_Question, _Answer], _Answer] = {}
    while len(answers) < len(children):
        waiting = [child for child in children if child not in answers]
        heard = ready(waiting, timeout)
        if not heard:
            raise TimeoutError(f"{', '.join(child.name for child in waiting)}: no answer for {timeout:g} s")
        for child in heard:
            answers[child] = child.receive()
    return [answers[child] for child in children]


def _live(line: Connection[Any, Any], make: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
    """The life of the process: what it makes answers until nobody asks any more, or until it fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # of the line: who asked is gone
        well, answer = _attempt(make, *arguments)
        if not well:
            line.send((well, answer))
        while well:
            well, said = _attempt(answer, line.recv())
            line.send((well, said))


def _attempt(work: Callable[..., Any], *arguments: Any) -> tuple[bool, Any]:
    """Whether the work went well, and what it gave: else what it raised in words, and as ``_causes``."""
    try:
        return True, work(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, who asked is told
        return False, (f"{type(error).__name__}: {error}", _causes(error))


def _causes(error: BaseException) -> list[BaseException]:
    """An error, its cause, that one's cause and so on, each as it can travel."""
    causes = [_portable(error)]
    while error.__cause__ is not None:
        error = error.__cause__
        causes.append(_portable(error))
    return causes


def _portable(error: BaseException) -> BaseException:
    """The error, or in its place one that says the same where its class does not come through pickle."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - what was written in the same expression
    except Exception:  # noqa: BLE001 - whatever somebody's class raises
        return RunError(f"{type(error).__name__}: {error}")
    return error
