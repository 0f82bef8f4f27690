"""What a process or thread that computes sets first, so that a run's numbers are its own."""

from __future__ import annotations

import os

import torch

from pipeline.config.devices import check_precision, num_cores
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Precision
from pipeline.layers.compile import share_cores
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


def allow_tf32(precision: Precision) -> None:
    """Whether a GPU's float32 products and convolutions in this process go by TF32: only where a run asks for it.

    PyTorch by itself has convolutions do so, and products not.
    """
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def configure_process(spec: RunSpec, device: torch.device) -> None:
    """Keeps freed memory and sets CPU threads to the run's; asks a GPU for the run's arithmetic, makes it current.

    The number of threads is a property of the calling thread.

    Raises:
        ResourcesError: the device does not have the run's precision.
    """
    check_precision(spec.settings.pipeline.precision, device)
    keep_freed_memory()
    torch.set_num_threads(spec.settings.pipeline.threads)
    if spec.compiles and spec.settings.pipeline.executor == "ray":
        share_cores(num_cores(), spec.num_stages)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        allow_tf32(spec.settings.pipeline.precision)
        ask_for_determinism(warn=spec.settings.pipeline.deterministic == "warn")
        torch.cuda.set_device(device)
