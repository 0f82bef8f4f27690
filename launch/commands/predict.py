"""`launch predict`: classes of image files."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from rich.console import Console

from launch.output.console import make_console, printable, say
from pipeline import load
from pipeline.data.sources import images
from pipeline.errors import UserError
from pipeline.export import Network


def predict(run: Path, files: list[Path], console: Console, *, top: int = 3) -> None:
    """The most likely classes of images, from a run folder or an exported file.

    Raises:
        UserError: no image is given, there is no network, or images cannot be read: those of all others are printed
            before, and a line on standard error for each that cannot.
    """
    if not files:
        raise UserError(f"predict needs image files behind {run}. For example: launch predict {run} photo.jpg")
    if top < 1:
        raise UserError(f"--top {top}: give the number of classes to name, at least 1.")
    network = load(run / "model.safetensors" if run.is_dir() else run)
    if network.shape[0] not in (1, 3):
        raise UserError(
            f"This network takes images of {network.shape[0]} channels; only grey and colour files can be read."
        )
    opened: dict[Path, torch.Tensor] = {}
    unreadable: dict[Path, str] = {}
    for file in files:
        try:
            opened[file] = torch.from_numpy(images.read(file, network.shape).transpose(2, 0, 1).copy())
        except images.UNREADABLE as cause:
            unreadable[file] = images.why(cause)
    if opened:
        _print_predictions(console, network, opened, top)
    if unreadable:
        for file, why in unreadable.items():
            say(make_console(sys.stderr), f"{file}: {why}")
        raise UserError(f"{len(unreadable)} of {len(opened) + len(unreadable)} files could not be read.")


def _print_predictions(console: Console, network: Network, opened: dict[Path, torch.Tensor], top: int) -> None:
    """A line for each image (C, H, W) with its most likely classes."""
    with torch.no_grad():
        probabilities = network(torch.stack(list(opened.values()))).softmax(dim=1)
    for file, row in zip(opened, probabilities, strict=True):
        best = row.topk(min(top, len(row)))
        said = ", ".join(
            f"{printable(network.classes[index])} {share:.1%}"
            for share, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        say(console, f"{file}: {said}")
