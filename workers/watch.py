"""Whether the workers of a run, and the Ray processes that this process started for them, are still there."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ray.exceptions import RayError

from workers.failures import ClusterLostError, failure_of

LOST_AFTER = 6.0
"""Seconds without a way to a worker after which the run ends: Ray mends a short interruption by itself."""


class Contact:
    """When each worker was asked, and whether it could be. One that is slow to answer is there, up to a limit.

    Args:
        limit: seconds within which a worker that lives answers, however busy it is.
    """

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self._asked: dict[str, float] = {}
        self._missed_since: dict[str, float] = {}

    def asked(self, name: str) -> None:
        self._asked.setdefault(name, self._clock())

    def answered(self, name: str) -> None:
        self._asked.pop(name, None)
        self._missed_since.pop(name, None)

    def missed(self, name: str, error: RayError) -> None:
        """Ray could not put a question to the worker.

        Raises:
            StageFailedError: nor any other since one ``LOST_AFTER`` seconds ago; the message names the worker.
        """
        now = self._clock()
        asked = self._asked.pop(name, now)  # Ray itself tries for some seconds before it says so
        if now - self._missed_since.setdefault(name, asked) >= LOST_AFTER:
            raise failure_of(name, error) from error

    def silent(self) -> str | None:
        """The worker that has not answered for the limit, if one has not."""
        return next((name for name, since in self._asked.items() if self._clock() - since > self._limit), None)


class OwnCluster:
    """The processes of Ray that this process started, as a private cluster's; none where it joined one.

    Ray itself takes a minute to notice that its head is dead, and ends the process then.
    """

    _KINDS = ("gcs_server", "raylet")

    def __init__(self) -> None:
        self._processes = {pid: kind for pid, kind in _children() if kind in self._KINDS}
        self.lost: ClusterLostError | None = None
        self.workers_end = False
        """Whether the workers end as well: they do with the process that started them."""

    @property
    def is_there(self) -> bool:
        """Whether this process started any."""
        return bool(self._processes)

    def check(self) -> None:
        """Raises ClusterLostError once one of them has died."""
        if self.lost is None and self._processes:
            there = dict(_children())
            gone = [f"{kind} (process {pid})" for pid, kind in self._processes.items() if pid not in there]
            if gone:
                self.workers_end = any(kind == "raylet" for pid, kind in self._processes.items() if pid not in there)
                self.lost = ClusterLostError(
                    f"host {os.uname().nodename} lost: Ray's {' and '.join(gone)} has died: it can no "
                    "longer watch the workers there"
                )
        if self.lost is not None:
            raise self.lost


def end_own() -> None:
    """Ends these processes without asking, and what they have started for themselves, agents of Ray's among it."""
    end_groups([pid for pid, kind in _children() if kind in OwnCluster._KINDS])  # each leads a group of its own


def end_groups(groups: Collection[int]) -> None:
    """Ends what is left of process groups that this process began, without asking.

    Ray's agents look now and then whether their node is still there; on a busy machine they outlive it by minutes.
    """
    session = os.getsid(0)  # a group's number may have become a stranger's
    for one in _processes():
        if one.group in groups and one.session == session:
            with suppress(ProcessLookupError):  # it ended while we looked
                os.kill(one.pid, signal.SIGKILL)


def _children() -> list[tuple[int, str]]:
    """This process's living children: their numbers, and what the system calls them."""
    return [(one.pid, one.name) for one in _processes() if one.parent == os.getpid()]


class _Process(NamedTuple):
    pid: int
    name: str  # that the system gives it
    parent: int
    group: int
    session: int


def _processes() -> list[_Process]:
    """All that live on this machine. Without /proc: none."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            name, rest = (entry / "stat").read_text().split("(", 1)[1].rsplit(") ", 1)
        except (OSError, IndexError):  # it ended while we looked
            continue
        state, parent, group, session = rest.split()[:4]
        if state != "Z":
            found.append(_Process(int(entry.name), name, int(parent), int(group), int(session)))
    return found
