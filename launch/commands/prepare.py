"""`launch prepare`: fetches a data set, or takes a folder, and says what came of it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from launch.output.console import say
from launch.output.data_lines import describe, resized, without
from launch.output.progress import ProgressLine
from launch.presets import PRESETS
from pipeline.data import prepare
from pipeline.data.index import DataIndex
from pipeline.data.registry import DATASETS


def prepare_data(
    name: str,
    console: Console,
    *,
    source: str | None,
    data_dir: Path | None,
    image_size: int | None,
    strict: bool,
) -> None:
    """Prepares a data set and says what is there now."""
    with ProgressLine(console) as line:
        folder = prepare.prepare(
            name, source=source, data_dir=data_dir, image_size=image_size, strict=strict, progress=line.report
        )
    index = DataIndex.load(folder)
    say(console, f"{describe(index)}, in {folder}")
    if index.resized_from:
        say(console, resized(index))
    if index.skipped:
        say(console, without(index, folder))
    data = name if name in DATASETS else folder
    made_for = (preset for preset, one in PRESETS.items() if one.settings.data.data == data)
    say(console, f"Train on it: launch {next(made_for, f'cff-vit --data {data}')}")
