"""What feeders say of themselves, for whoever watches a run: asked now and then, and never waited for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.telemetry.reports import FeederStatus

_EVERY = 1.0  # seconds between two questions to a feeder


class FeederStatuses:
    """The latest word of every feeder in an attempt at the run, by its number."""

    def __init__(self, attempt: int) -> None:
        self._attempt = attempt
        self._asked: dict[int, ray.ObjectRef[FeederStatus]] = {}
        self._asked_at: dict[int, float] = {}
        self._said: dict[int, FeederStatus] = {}

    def ask(self, feeders: Mapping[int, Any]) -> list[FeederStatus]:
        """What these actors said last. Hears what has come meanwhile, and asks those again that it is time for."""
        for number, feeder in feeders.items():
            ref = self._asked.get(number)
            if ref is not None and ray.wait([ref], timeout=0)[0]:
                del self._asked[number]
                with suppress(RayError):  # it is dead: its work says so by name
                    self._said[number] = ray.get(ref)
            now = time.monotonic()
            if number not in self._asked and now - self._asked_at.get(number, -_EVERY) >= _EVERY:
                self._asked[number], self._asked_at[number] = feeder.poll.remote(self._attempt), now
        return [said for number, said in sorted(self._said.items()) if number in feeders]
