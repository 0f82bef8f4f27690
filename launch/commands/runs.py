"""`launch runs`: a table of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from launch.output.saved_runs import SavedRun, open_all
from launch.output.tables import print_table


def print_runs(places: Sequence[Path], console: Console) -> None:
    """A row for each run, the oldest first. Errors as of ``launch.output.saved_runs.open_all``."""
    headings = ("run", "status", "preset", "data", "stages", "epochs", "test accuracy", "images/s", "speed-up")
    rows = [_row(run) for run in sorted(open_all(places), key=lambda run: (run.folder / "config.json").stat().st_mtime)]
    print_table(console, headings, rows, left=("run", "status", "preset", "data"))


def _row(run: SavedRun) -> list[str]:
    settings, now = run.settings, run.now
    accuracy, speed = run.value("test_accuracy"), run.value("speed", "images_per_second")
    gained, ideal = run.value("speed", "measured_speedup"), run.value("speed", "ideal_speedup")
    done, asked = run.value("epochs_finished"), settings.get("train", {}).get("epochs", "?")
    if now is not None:
        done = f"{now.step / max(1, now.steps) * asked:.1f}" if isinstance(asked, int) else None
        speed = min((stage.images_per_second for stage in now.stages), default=None)
    stages = run.config.get("stages")
    return [
        run.name,
        run.status,
        str(settings.get("preset", "?")),
        str(run.config.get("data", {}).get("name", "?")),
        str(len(stages)) if isinstance(stages, list) else "?",
        f"{'–' if done is None else done}/{asked}",
        "–" if accuracy is None else f"{accuracy:.2%}",
        "–" if speed is None else f"{speed:,.0f}",
        "–" if gained is None or ideal is None else f"{gained:.2f} of {ideal:.2f}",
    ]
