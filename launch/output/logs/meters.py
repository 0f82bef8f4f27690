"""Speed of a stage, and where its time goes, over the last seconds; how much of their time feeders need."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from pipeline.telemetry.clock import TimeBreakdown, TimeCategory
from pipeline.telemetry.reports import FeederStatus, Status

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
        """Where the time went; None before the second look. Launching is that of all steps so far: few tell of it."""
        if self._wall() <= 0:
            return None
        now = self._seen[-1].account
        return replace(now - self._seen[0].account, launching=now.launching)

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


class InputMeter:
    """Of all feeders: the share of time in which the busiest reads, batches and packs."""

    def __init__(self) -> None:
        self._seen: deque[list[TimeBreakdown]] = deque()
        self._worked: dict[int, float] = {}  # seconds of each feeder since the first look, and of the looks between
        self._wall = 0.0

    def add(self, feeders: Sequence[FeederStatus]) -> None:
        """Takes where they are now, while the layers learn."""
        if not feeders:  # the first stage reads for itself
            return
        now = [feeder.account for feeder in feeders]
        last = self._seen[-1] if self._seen else []
        if len(now) != len(last) or any(one.wall < before.wall for one, before in zip(now, last, strict=True)):
            self._seen.clear()  # they have begun anew
        elif now[0].wall > last[0].wall:
            for number, (one, before) in enumerate(zip(now, last, strict=True)):
                self._worked[number] = self._worked.get(number, 0.0) + _worked(one - before)
            self._wall += now[0].wall - last[0].wall
        else:
            return  # nothing has been heard since
        self._seen.append(now)
        while len(self._seen) > 2 and now[0].wall - self._seen[1][0].wall > _WINDOW:
            self._seen.popleft()

    @property
    def share(self) -> float | None:
        """Over the last seconds; None before the second look."""
        if len(self._seen) < 2:
            return None
        between = [one - before for one, before in zip(self._seen[-1], self._seen[0], strict=True)]
        return max(_worked(one) / one.wall for one in between)

    @property
    def overall(self) -> float | None:
        """Over all looks."""
        return max(self._worked.values()) / self._wall if self._wall > 0 else None


def _worked(account: TimeBreakdown) -> float:
    return account.seconds[TimeCategory.BUSY] + account.seconds[TimeCategory.COPY]
