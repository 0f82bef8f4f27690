"""What stages can be placed on."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from pipeline.config.settings import Precision
from pipeline.errors import ResourcesError

TENSOR_CORES = (8, 0)
"""Compute capability of GPUs that have bf16 and TF32; those before imitate bf16, many times slower than float32."""


@dataclass(frozen=True)
class Devices:
    """What stages can be placed on. A CPU device is ``threads`` cores."""

    kind: str
    count: int


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_devices(wanted: str, threads: int, precision: Precision = "fp32") -> Devices:
    """This machine's devices. ``wanted`` is "auto", "cpu" or "cuda".

    Args:
        precision: what they are to compute in.

    Raises:
        ResourcesError: CUDA is asked for and not there, or a GPU lacks the precision.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        if torch.version.cuda is None:
            problem, cure = "this PyTorch is built without CUDA", "install a CUDA build of PyTorch"
        else:
            problem, cure = "no GPU answers", "have `nvidia-smi` list one, in a container with --gpus all"
        raise ResourcesError(f"`device` cuda: {problem}. Use `device` cpu, or {cure}.")
    if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()):
        count = torch.cuda.device_count()
        for index in range(count):
            check_precision(precision, torch.device("cuda", index))
        return Devices("cuda", count)
    return Devices("cpu", max(1, num_cores() // threads))


def has_precision(precision: Precision, device: torch.device) -> bool:
    """Whether a device computes in a precision at all, and not merely as if."""
    if precision == "fp32" or device.type != "cuda":
        return True  # a GPU is asked only where it matters: asking starts CUDA in this process
    return torch.cuda.get_device_capability(device) >= TENSOR_CORES


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raises ResourcesError where a device does not have the precision that a run asks for."""
    if not has_precision(precision, device):
        has, needs = (".".join(map(str, pair)) for pair in (torch.cuda.get_device_capability(device), TENSOR_CORES))
        lacks = "would crawl in it" if precision == "bf16" else "has none"
        raise ResourcesError(
            f"`precision` {precision}: {device} is a GPU of compute capability {has}, which {lacks}; {precision} "
            f"needs {needs} or higher. Use `precision` fp32."
        )
