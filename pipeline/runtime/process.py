"""What a process or thread that computes sets first, so that a run's numbers are its own."""

from __future__ import annotations

import os

import torch

from pipeline.config.devices import check_precision
from pipeline.config.run_spec import RunSpec
from pipeline.runtime.allocator import keep_freed_memory


def ask_for_determinism(*, warn: bool) -> None:
    """Kernels that give the same bits every time, in this process.

    Args:
        warn: where there is none PyTorch warns in place of an error. It takes this as leave to use attention's
            backward passes that sum in any order, too.
    """
    torch.use_deterministic_algorithms(True, warn_only=warn)
    # By default new memory is then filled with NaN, a kernel for each tensor; a layer reads no memory before it writes.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def configure_process(spec: RunSpec, device: torch.device) -> None:
    """Keeps freed memory and sets CPU threads to the run's; asks a GPU for deterministic kernels and makes it current.

    The number of threads is a property of the calling thread.

    Raises:
        ResourcesError: the device does not have the run's precision.
    """
    check_precision(spec.settings.pipeline.precision, device)
    keep_freed_memory()
    torch.set_num_threads(spec.settings.pipeline.threads)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        ask_for_determinism(warn=spec.settings.pipeline.deterministic == "warn")
        torch.cuda.set_device(device)
