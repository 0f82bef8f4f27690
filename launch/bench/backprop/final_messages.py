"""What a process of such a run leaves behind when it fails."""

from __future__ import annotations

import os

import torch

from launch.bench.protocol import CannotRunError


def kind_of(error: BaseException | None) -> str:
    """What whoever asked should make of an error: "memory", "cannot" or "failed"."""
    if isinstance(error, CannotRunError):
        return "cannot"
    while error is not None:
        # A CPU tensor that cannot be had is a plain RuntimeError.
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            return "memory"
        error = error.__cause__
    return "failed"


def print_into(said: str) -> None:
    """Sends to a file what this process prints."""
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
