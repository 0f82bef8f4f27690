"""`launch top`: the live table of a run that goes on elsewhere, where its folder or its cluster is seen."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from launch.output import live
from launch.output.console import say
from launch.output.going_on import is_locked
from launch.output.run_folder import RUNS, load_config
from launch.output.saved_runs import runs_below
from pipeline.errors import UserError

_LOOK = 0.5  # seconds between two looks
_SILENT = 15.0  # seconds after which it is said that there is no news


class Watched(ABC):
    """A run that goes on elsewhere.

    Attributes:
        name: what it is called here.
    """

    name: str

    @abstractmethod
    def goes_on(self) -> bool:
        """Whether it still does."""

    @abstractmethod
    def now(self) -> live.Now | None:
        """Where it is; None as long as it has not said so."""


def top(run: str | None, console: Console, *, once: bool, ray_address: str | None) -> None:
    """Shows a run until it is over, or the table is left by Ctrl-C.

    Args:
        run: its folder, or on a cluster its name. None: the one that goes on, of several the newest.
        once: whether to print the table once and end.
        ray_address: of the cluster on which it runs. None: it is looked for in folders here.

    Raises:
        UserError: no run goes on there.
        ResourcesError: the cluster cannot be reached.
    """
    address = ray_address or (os.environ.get("RAY_ADDRESS") if run is None and not _going() else None)
    watched = InFolder(run) if address is None else OnCluster(run, address)
    if once or not console.is_terminal:
        console.print(_picture(watched, console), soft_wrap=not console.is_terminal)
        return
    with Live(_picture(watched, console), console=console, auto_refresh=False, screen=False) as shown:
        while watched.goes_on():
            shown.update(_picture(watched, console), refresh=True)
            time.sleep(_LOOK)
    say(console, f"{watched.name}: the run is over, or has been stopped.")


class InFolder(Watched):
    """A run whose folder this machine sees.

    Args:
        run: the folder. None: the newest of those in ``runs`` that go on.

    Raises:
        UserError: no run goes on there.
    """

    def __init__(self, run: str | None) -> None:
        self._folder = _newest() if run is None else Path(run)
        self.name = str(self._folder)
        load_config(self._folder)
        if not self.goes_on():
            raise UserError(f"{self._folder}: no run goes on there. `launch runs` lists what there is.")

    def goes_on(self) -> bool:
        return is_locked(self._folder)

    def now(self) -> live.Now | None:
        return live.read(self._folder)


class OnCluster(Watched):
    """A run on a Ray cluster, which this process joins to look at it.

    Args:
        run: its name, as the folder's or whole. None: the one that told of itself last.

    Raises:
        UserError: no run of that name goes on there.
        ResourcesError: the cluster cannot be reached.
    """

    def __init__(self, run: str | None, address: str) -> None:
        from workers.cluster import join  # noqa: PLC0415 (Ray takes a second, which a folder needs none of)

        join(address)
        found = self._runs()
        named = {name: now for name, now in found.items() if run in (None, name, Path(name).name)}
        if not named:
            there = f"Those that do: {', '.join(sorted(found))}." if found else "Nor does any other."
            what = "no run goes on there." if run is None else f"no run {run} goes on there. {there}"
            raise UserError(f"The cluster at {address}: {what}")
        if run is not None and len(named) > 1:
            raise UserError(f"{run}: {len(named)} runs have that name. Give one whole: {', '.join(sorted(named))}.")
        self.name = max(named, key=lambda name: named[name].at)

    def goes_on(self) -> bool:
        return self.name in self._runs()

    def now(self) -> live.Now | None:
        return self._runs().get(self.name)

    @staticmethod
    def _runs() -> dict[str, live.Now]:
        from workers.board import notes  # noqa: PLC0415 (as above)

        read = {name: live.loads(note) for name, note in notes().items()}
        return {name: now for name, now in read.items() if now is not None and not live.outdated(now)}


def _going() -> list[Path]:
    return [run for run in runs_below(RUNS) if is_locked(run)]


def _newest() -> Path:
    going = _going()
    if not going:
        raise UserError(f"{RUNS}: no run goes on there. Give a run folder, or --address with a cluster.")
    return max(going, key=lambda run: (run / "config.json").stat().st_mtime)


def _picture(watched: Watched, console: Console) -> RenderableType:
    now = watched.now()
    if now is None:
        return Text(f"{watched.name}: starting; no batch has come through yet.")
    progress = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    progress.add_task(f"step {now.step:,} of {now.steps:,}", total=max(1, now.steps), completed=now.step)
    silent = time.time() - now.at
    news = [Text(f"no news for {silent:.0f} s")] if silent > _SILENT else []
    return Group(live.picture(now, console.width), progress, *news)
