"""What a run does after a failure: a pure decision, and the loop that carries it out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from pipeline.config.run_spec import RunSpec
from pipeline.errors import RunError
from pipeline.runtime.checkpointing import Checkpointing
from pipeline.runtime.history import RunResult
from pipeline.runtime.observer import Observer
from pipeline.runtime.once import Once
from pipeline.runtime.passes import START, Cut, described, trained_steps
from pipeline.runtime.resume import going_on, newest
from pipeline.runtime.states import RunState

_BACKOFF, _LONGEST = 1.0, 30.0  # seconds before a second restart in one place; they double up to the longest
_LOOK = 0.1  # seconds between two looks at whether the person wants to stop

Train = Callable[[Observer, Checkpointing], RunResult]


@dataclass(frozen=True)
class Failure:
    """A failure of a run.

    Attributes:
        error: what ended it, in words.
        cut: the place where that part of the run had begun.
        mends: whether the same may go well another time (``RunError.mends``).
    """

    error: str
    cut: Cut
    mends: bool

    @classmethod
    def of(cls, error: RunError, cut: Cut) -> Failure:
        return cls(str(error), cut, error.mends)


@dataclass(frozen=True)
class Decision:
    """What is done about a failure.

    Attributes:
        seconds: to wait before it.
        why: for "stop", why no further restart.
    """

    action: Literal["restart", "stop"]
    seconds: float = 0.0
    why: str = ""


def decide(failures: Sequence[Failure], most: int) -> Decision:
    """What to do after a run's failures, the last of which has just happened.

    Args:
        most: restarts that a run may have. Those from which it came further, to another checkpoint, count as well.
    """
    last = failures[-1]
    if not last.mends:
        return Decision("stop", why="it would happen again")
    if len(failures) > most:
        return Decision("stop", why=f"{most} restarts were not enough" if most else "")
    if len(failures) > 1 and failures[-2] == last:
        return Decision("stop", why="the same happened twice in the same place")
    in_place = len(list(takewhile(lambda failure: failure.cut == last.cut, reversed(failures))))
    return Decision("restart", seconds=min(_LONGEST, _BACKOFF * 2 ** (in_place - 2)) if in_place > 1 else 0.0)


def recovering(spec: RunSpec, train: Train, observer: Observer, checkpointing: Checkpointing) -> RunResult:
    """Trains, and after a failure from which a run may recover goes on from its last checkpoint.

    Errors as of ``train``; the last one, once there is nothing more to be done.
    """
    observer = Once(observer)
    failures: list[Failure] = []
    while True:
        try:
            return train(observer, checkpointing)
        except RunError as error:
            failures.append(Failure.of(error, checkpointing.cut))
            decision = decide(failures, spec.settings.checkpoint.max_restarts)
            ends = decision.action == "stop" or checkpointing.folder is None or observer.interrupted()
            if ends or not observer.began:  # what cannot even start is a mistake, not an accident
                raise
            failed = time.perf_counter()
            checkpointing = _from_newest(spec, checkpointing, observer)
            cut = checkpointing.cut
            if error.repeats and cut == START:
                raise
            observer.entered(RunState.RESTARTING)
            observer.failed()
            place = "the beginning" if cut == START else described(spec, cut)
            number = f"restart {len(failures)} of {spec.settings.checkpoint.max_restarts}"
            again = max(0, observer.trained_steps(spec) - trained_steps(spec, cut))
            steps = f"{again:,} {'step' if again == 1 else 'steps'} again"
            observer.notified(f"{error.fact}. Going on from {place}, {steps} ({number}).")
            while time.perf_counter() - failed < decision.seconds and not observer.interrupted():
                time.sleep(_LOOK)


def _from_newest(spec: RunSpec, checkpointing: Checkpointing, observer: Observer) -> Checkpointing:
    """From the newest checkpoint that can be read; from the beginning where there is none."""
    assert checkpointing.folder is not None, "the run saves checkpoints"
    manifest = newest(checkpointing.folder, passed_over=observer.notified)
    if manifest is None:
        return Checkpointing(folder=checkpointing.folder, start=checkpointing.start)
    return going_on(spec, checkpointing, checkpointing.folder, manifest)
