"""Runs as their folders tell of them: several at a time, also those that go on or were cut off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.output import live
from launch.output.going_on import is_locked
from launch.output.run_folder import REPRODUCTION, RUNS, SWEEP, load_config, run_name
from pipeline import plain_json
from pipeline.errors import UserError


@dataclass(frozen=True)
class SavedRun:
    """A run folder's content.

    Attributes:
        config: ``config.json``.
        summary: ``summary.json``; empty where the run has not come to its end.
        goes_on: whether a process writes to it.
        now: where it is, of a run that goes on.
    """

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    goes_on: bool
    now: live.Now | None

    @property
    def name(self) -> str:
        """That of its folder, of a run in a sweep or of a table with the folder's before it."""
        return run_name(self.folder)

    @property
    def settings(self) -> dict[str, Any]:
        """Groups of settings, as ``config.json`` has them."""
        found = self.config["settings"]
        return found if isinstance(found, dict) else {}

    @property
    def status(self) -> str:
        """ "running", or as the summary has it; "cut off" where there is none."""
        return "running" if self.goes_on else str(self.summary.get("status", "cut off"))

    def value(self, *path: str) -> Any:
        """What the summary has there; None where it has nothing."""
        found: Any = self.summary
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return found


def folders_in(place: Path) -> list[Path]:
    """A run folder, or those in a folder, also in sweeps and tables there. Raises UserError where there is none."""
    if (place / "config.json").is_file():
        return [place]
    found = runs_below(place)
    if not found:
        raise UserError(f"{place}: holds no run. Give run folders, or a folder of them.")
    return found


def runs_below(folder: Path) -> list[Path]:
    """Run folders in a folder, and in sweeps and tables there; none where there is no such folder."""
    sweeps = [sweep.parent for name in (SWEEP, REPRODUCTION) for sweep in folder.glob(f"*/{name}")]
    return sorted(config.parent for one in (folder, *sweeps) for config in one.glob("*/config.json"))


def open_all(places: Sequence[Path]) -> list[SavedRun]:
    """The runs in these places, those in ``runs`` where none is given.

    Raises:
        UserError: there is none, or a folder is damaged.
    """
    return [open_one(folder) for place in places or [RUNS] for folder in folders_in(place)]


def open_one(folder: Path) -> SavedRun:
    """The run in a folder. Raises UserError where it is none."""
    config, goes_on = load_config(folder), is_locked(folder)
    summary: Any = {}
    if not goes_on and (folder / "summary.json").is_file():
        try:
            summary = plain_json.read(folder / "summary.json")
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / 'summary.json'}: cannot be read ({error}).") from error
        if not isinstance(summary, dict):
            raise UserError(f"{folder / 'summary.json'}: is no table of figures.")
    return SavedRun(folder, config, summary, goes_on, live.read(folder) if goes_on else None)
