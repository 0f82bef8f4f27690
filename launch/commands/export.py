"""`launch export`: one file that `pipeline.load` reads."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.console import Console

from launch.output.console import say
from pipeline.errors import UserError
from pipeline.export import network_of, read


def export(run: Path, file: Path, console: Console) -> None:
    """Copies a run's network to one file that ``pipeline.load`` reads without Ray."""
    if file.suffix != ".safetensors":
        raise UserError(f"{file}: give the file a name that ends in .safetensors.")
    if file.exists():
        raise UserError(f"{file} exists. Give another name, or remove it.")
    source = run / "model.safetensors"
    weights, card = read(source)
    network_of(weights, card, source=str(source))  # what ``load`` would refuse is not copied
    part = file.with_name(f".{file.name}.part")
    try:
        shutil.copyfile(source, part)
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{file}: cannot be written ({error.strerror}). Choose another file.") from error
    parameters = sum(value.numel() for value in weights.values())
    say(
        console,
        f"{file}: {card.net.describe()} for {len(card.classes)} classes, {parameters:,} parameters, "
        f"{file.stat().st_size / 2**20:.1f} MiB. Load it with: from pipeline import load; load({str(file)!r})",
    )
