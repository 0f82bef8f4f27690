"""What stages can be placed on."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from pipeline.errors import ResourcesError


@dataclass(frozen=True)
class Devices:
    """What stages can be placed on. A CPU device is ``threads`` cores."""

    kind: str
    count: int


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_devices(wanted: str, threads: int) -> Devices:
    """This machine's devices. ``wanted`` is "auto", "cpu" or "cuda".

    Raises:
        ResourcesError: CUDA is asked for and not there.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        build = "this PyTorch is built without CUDA" if torch.version.cuda is None else "no GPU answers"
        raise ResourcesError(f"`device` cuda: {build}. Use `device` cpu, or install a CUDA build of PyTorch.")
    if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()):
        return Devices("cuda", torch.cuda.device_count())
    return Devices("cpu", max(1, num_cores() // threads))
