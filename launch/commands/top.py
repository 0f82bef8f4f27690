"""`launch top`: the live table of a run that goes on elsewhere, from any terminal that sees its folder."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from launch.output import live
from launch.output.console import say
from launch.output.going_on import is_locked
from launch.output.run_folder import RUNS, load_config
from pipeline.errors import UserError

_LOOK = 0.5  # seconds between two looks
_SILENT = 15.0  # seconds after which it is said that there is no news


def top(run: Path | None, console: Console, *, once: bool) -> None:
    """Shows a run until it is over, or the table is left by Ctrl-C.

    Args:
        run: its folder. None: the one of those in ``runs`` that goes on; of several the newest.
        once: whether to print the table once and end.

    Raises:
        UserError: no run goes on there.
    """
    run = _newest() if run is None else run
    load_config(run)
    if not is_locked(run):
        raise UserError(f"{run}: no run goes on there. `launch runs` lists what there is.")
    if once or not console.is_terminal:
        console.print(_picture(run, console), soft_wrap=not console.is_terminal)
        return
    with Live(_picture(run, console), console=console, auto_refresh=False, screen=False) as shown:
        while is_locked(run):
            shown.update(_picture(run, console), refresh=True)
            time.sleep(_LOOK)
    say(console, f"{run}: the run is over, or has been stopped.")


def _newest() -> Path:
    going = [config.parent for config in RUNS.glob("*/config.json") if is_locked(config.parent)]
    if not going:
        raise UserError(f"{RUNS}: no run goes on there. Give a run folder.")
    return max(going, key=lambda run: (run / "config.json").stat().st_mtime)


def _picture(run: Path, console: Console) -> RenderableType:
    now = live.read(run)
    if now is None:
        return Text(f"{run}: starting; no batch has come through yet.")
    progress = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    progress.add_task(f"step {now.step:,} of {now.steps:,}", total=max(1, now.steps), completed=now.step)
    silent = time.time() - now.at
    news = [Text(f"no news for {silent:.0f} s")] if silent > _SILENT else []
    return Group(live.picture(now, console.width), progress, *news)
