"""`launch prepare` and the data half of `launch list`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from launch.output.console import say
from pipeline.data import prepare, skipped
from pipeline.data.index import DataIndex
from pipeline.data.loader import Dataset
from pipeline.data.registry import DATASETS
from pipeline.data.skipped import Skipped
from pipeline.nets import NetConfig
from pipeline.nets.patches import describe_patches, patch_of


def without(index: DataIndex, folder: Path) -> str:
    """What a prepared set lacks, why, and where the whole list is."""
    said = f"{index.skipped:,} file{'s' if index.skipped > 1 else ''} of {index.name} left out"
    listed = skipped.load(folder)
    if listed is None:
        return f"{said}. Prepared by an older version: names unknown."
    return f"{said}. {_capital(skipped.by_reason(listed))}. All are listed in {folder / skipped.SKIPPED_FILE}."


def left_out(dataset: Dataset) -> list[Skipped]:
    """All that a run's data lack, as far as their names are known: when they were prepared, and now."""
    return [*(skipped.load(dataset.folder) or ()), *dataset.skipped]


def warnings(dataset: Dataset) -> list[str]:
    """Sentences about all that a run's data lack."""
    prepared = [without(dataset.index, dataset.folder)] if dataset.index.skipped else []
    return prepared + [f"left out {shard.file}, a {shard.reason}." for shard in dataset.skipped]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def resized(index: DataIndex) -> str:
    """What was done to the sizes of a prepared set's images."""
    return f"images resized from {index.resized_from} to {index.shape[1]}×{index.shape[2]}"


def image_line(net: NetConfig, index: DataIndex) -> str | None:
    """What a run's images are to its net: their size, from where it came, and the tokens; None where that is nothing.

    ``net`` is resolved: its patch is a number.
    """
    patch = patch_of(net)
    size = resized(index) if index.resized_from else f"{index.shape[1]}×{index.shape[2]} images"
    if isinstance(patch, int):
        return f"{size}, {describe_patches(patch, index.shape)}"
    return size if index.resized_from else None


def describe(index: DataIndex) -> str:
    """One line about a prepared data set."""
    channels, height, width = index.shape
    counts = ", ".join(f"{split.count:,} {name}" for name, split in index.splits.items())
    return (
        f"{index.name}: {counts} images of {height}×{width}×{channels}, {len(index.classes)} classes, "
        f"{index.num_bytes / 2**20:.0f} MiB"
    )


def print_data_sets(console: Console, data_dir: Path | None) -> None:
    """Every data set by name, and whether it is prepared here."""
    table = Table("data set", "what it is", "prepared here", title="Data sets: --data NAME", title_justify="left")
    for name, facts in DATASETS.items():
        index = prepare.is_prepared(name, data_dir)
        if index is not None:
            state = "yes, " + describe(index).split(": ", 1)[1]
        else:
            state = "on first use" if facts.embedded else f"no: launch prepare {name}"
        table.add_row(name, facts.title, state)
    console.print(table)
    say(
        console,
        "Also --data FOLDER: images by class, or WebDataset shards. "
        f"Prepared sets lie in {data_dir or prepare.default_data_dir()}.",
    )
