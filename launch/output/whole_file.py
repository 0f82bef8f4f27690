"""Small files that are there whole or not at all, whenever somebody else looks."""

from __future__ import annotations

from pathlib import Path


def write_whole(file: Path, content: str | bytes) -> None:
    """Writes text (UTF-8) or bytes beside the file, and puts them in its place. Raises OSError where that cannot be."""
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(file)
