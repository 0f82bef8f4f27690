"""Speed of a stage, and where its time goes, over the last seconds."""

from __future__ import annotations

from collections import deque

from pipeline.telemetry.clock import TimeBreakdown, TimeCategory
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
    def account(self) -> TimeBreakdown | None:
        """Where the time went; None before the second look."""
        return self._seen[-1].account - self._seen[0].account if self._wall() > 0 else None

    @property
    def images_per_second(self) -> float:
        wall = self._wall()
        return (self._seen[-1].images - self._seen[0].images) / wall if wall > 0 else 0.0

    @property
    def utilisation(self) -> float:
        """Share of the time in which it computed."""
        return self.account.utilisation if self.account is not None else 0.0

    @property
    def shares(self) -> dict[str, float]:
        """Shares of the time that it did not compute, by what it did: with ``utilisation`` they add up to 1."""
        account = self.account
        if account is None:
            return {}
        waits = [kind for kind in TimeCategory if kind is not TimeCategory.BUSY]
        return {kind.value: account.share(kind) for kind in waits} | {"other": account.other / account.wall}

    def _wall(self) -> float:
        return self._seen[-1].account.wall - self._seen[0].account.wall if len(self._seen) > 1 else 0.0
