"""Speed of a stage, and where its time goes, over the last seconds."""

from __future__ import annotations

from collections import deque

from pipeline.telemetry.reports import Status

_WINDOW = 3.0  # seconds


class Meter:
    """Of one stage, from where it was at several moments."""

    def __init__(self) -> None:
        self._seen: deque[Status] = deque()

    def add(self, status: Status) -> None:
        """Takes where the stage is now."""
        if not status.kind:  # its clock starts anew with its first batch
            return
        if self._seen and status.account.wall < self._seen[-1].account.wall:
            self._seen.clear()
        self._seen.append(status)
        while len(self._seen) > 2 and status.account.wall - self._seen[1].account.wall > _WINDOW:
            self._seen.popleft()

    @property
    def images_per_second(self) -> float:
        wall = self._wall()
        return (self._seen[-1].images - self._seen[0].images) / wall if wall > 0 else 0.0

    @property
    def utilisation(self) -> float:
        """Share of the time in which it computed."""
        return (self._seen[-1].account - self._seen[0].account).utilisation if self._wall() > 0 else 0.0

    @property
    def shares(self) -> dict[str, float]:
        """Shares of the time that it did not compute, by what it did: with ``utilisation`` they add up to 1."""
        wall = self._wall()
        if wall <= 0:
            return {}
        account = self._seen[-1].account - self._seen[0].account
        seconds = {kind.value: spent for kind, spent in account.seconds.items()} | {"other": account.other}
        del seconds["busy"]
        return {kind: spent / wall for kind, spent in seconds.items()}

    def _wall(self) -> float:
        return self._seen[-1].account.wall - self._seen[0].account.wall if len(self._seen) > 1 else 0.0
