"""By how much another machine's clock is ahead of this one, from questions and answers that carry its time.

A clock is read between question and answer, so half of what both took is the most that the estimate can be wrong by,
and the quickest of several answers tells most (Cristian 1989).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Offset:
    """Seconds by which a clock is ahead of the launching process's, and by how many that may be wrong."""

    seconds: float
    uncertainty: float


HERE = Offset(0.0, 0.0)
"""Of a process on the same machine: it has the same clock."""


class OffsetEstimate:
    """Of a clock, from the newest answers: clocks drift.

    Args:
        newest: so many count.
    """

    def __init__(self, newest: int = 200) -> None:
        self._heard: deque[Offset] = deque(maxlen=newest)

    def heard(self, asked: float, told: float, answered: float) -> None:
        """An answer: this process asked and had the answer by its own clock; the other one read its clock between."""
        self._heard.append(Offset(told - (asked + answered) / 2, abs(answered - asked) / 2))

    @property
    def best(self) -> Offset:
        """By the quickest answer. There must have been one."""
        return min(self._heard, key=lambda one: one.uncertainty)
