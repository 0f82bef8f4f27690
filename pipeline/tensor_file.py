"""Writes safetensors files as other files are written: whole or not at all, and readable by whom the umask allows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors by name, with text beside them.

    Raises:
        OSError, SafetensorError: the file cannot be written; nothing of it is left, and an older one stays.
    """
    part = file.with_name(f".{file.name}.part")
    try:
        part.touch()
        mode = part.stat().st_mode  # safetensors makes a file anew that its owner alone may read
        save_file({name: value.contiguous() for name, value in tensors.items()}, part, metadata=dict(metadata or {}))
        part.chmod(mode)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
