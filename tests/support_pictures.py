"""Pictures for tests that do not look at them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure

    from launch.output.pictures import Vector

_HEADS = {"pdf": b"%PDF", "svg": b"<?xml"}


def write_blank(figure: Figure, file: Path, *vectors: Vector) -> None:
    """In place of ``launch.output.pictures.write``: the files that it would leave, with nothing in them."""
    from PIL import Image

    Image.new("RGB", (4, 4)).save(file)
    for vector in vectors:
        file.with_suffix(f".{vector}").write_bytes(_HEADS[vector])
