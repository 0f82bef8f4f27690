"""What a process or thread that computes sets first, so that a run's numbers are its own (law 2)."""

from __future__ import annotations

import os

import torch

from pipeline.spec import RunSpec


def settle(spec: RunSpec, device: torch.device) -> None:
    """Sets CPU threads to the run's; on a GPU asks for deterministic kernels, and makes it the current one.

    The number of threads is a property of the calling thread. Where PyTorch has no deterministic kernel it warns.
    """
    torch.set_num_threads(spec.settings.pipeline.threads)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.cuda.set_device(device)
