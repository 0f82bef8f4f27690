"""The states of a run, which may follow which, and how long it was in each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType


class RunState(StrEnum):
    """What a run is doing."""

    STARTING = "starting"
    """Its workers are started and joined; no batch has come through yet."""

    RUNNING = "running"
    """It trains, validates or tests."""

    DRAINING = "draining"
    """It is to stop: what is under way is finished and saved."""

    RESTARTING = "restarting"
    """It has failed and goes on from a checkpoint; no batch has come through yet."""

    FINISHING = "finishing"
    """Its stages have ended; what they learned is gathered."""


FOLLOWS: Mapping[RunState, frozenset[RunState]] = MappingProxyType(
    {
        # A short run is over before anybody has seen it run.
        RunState.STARTING: frozenset((RunState.RUNNING, RunState.DRAINING, RunState.RESTARTING, RunState.FINISHING)),
        RunState.RUNNING: frozenset((RunState.DRAINING, RunState.RESTARTING, RunState.FINISHING)),
        RunState.DRAINING: frozenset((RunState.FINISHING,)),
        RunState.RESTARTING: frozenset((RunState.RUNNING, RunState.DRAINING, RunState.FINISHING)),
        RunState.FINISHING: frozenset((RunState.RESTARTING,)),
    }
)
"""What may follow each. Any of them may be the last."""


class Course:
    """The states that a run has been in, from its start on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._now, self._since = RunState.STARTING, clock()
        self._spent = dict.fromkeys(RunState, 0.0)
        self._times: Counter[RunState] = Counter({RunState.STARTING: 1})

    def enter(self, state: RunState) -> None:
        """The run is in that state from now on, and may have been before."""
        if state is self._now:
            return
        assert state in FOLLOWS[self._now], f"a run that is {self._now} cannot be {state} next"
        self._count()
        self._now = state
        self._times[state] += 1

    @property
    def now(self) -> RunState:
        return self._now

    @property
    def restarts(self) -> int:
        """How often it went on after a failure."""
        return self._times[RunState.RESTARTING]

    def seconds(self) -> dict[str, float]:
        """Spent in each state that it was in, until now."""
        self._count()
        return {state.value: self._spent[state] for state in RunState if self._times[state]}

    def _count(self) -> None:
        now = self._clock()
        self._spent[self._now] += now - self._since
        self._since = now
