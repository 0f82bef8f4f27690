"""``torch.compile`` for layers: once for all layers of one shape, kept on disk from run to run."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_T = TypeVar("_T")
_SHAPES = 256  # different layers that a process may hold; PyTorch gives up after 8 unless told


def compiled(function: Callable[_P, _T], how: Literal["on", "graphs"]) -> Callable[_P, _T]:
    """The function, compiled when it is called first, anew for every shape of its arguments.

    The compiled code belongs to the function and the shapes of what it is given, not to one layer's weights, so layers
    of one shape share it. It is kept in $TORCHINDUCTOR_CACHE_DIR, or beside the prepared data in the user's cache
    where that can be written, else in the temporary folder.

    Args:
        how: "graphs" replays each call as a CUDA graph. What a call returns lies where the next call writes.
    """
    _keep_compiled()
    torch._dynamo.config.recompile_limit = max(_SHAPES, torch._dynamo.config.recompile_limit)
    _tune_nothing()
    mode = "reduce-overhead" if how == "graphs" else None
    return torch.compile(function, dynamic=False, mode=mode)


def share_cores(num_cores: int, num_processes: int) -> None:
    """Has the compiler start no more processes of its own than are this process's share of the cores.

    By itself it starts one for each core, up to 32, in every process that compiles. To be called before an optimizer
    is made, which reads the variable; one that is set stays.
    """
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, num_cores // num_processes)))


def _keep_compiled() -> None:
    """Has the compiler keep its code in the user's cache. Where that cannot be, it does so in the temporary folder."""
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "localpipe" / "compiled"
        cache.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # nobody may write there, or there is no home
        return
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)


def _tune_nothing() -> None:
    """Has the compiler choose kernels by rule, not by timing them: each process would choose its own, with other bits.

    Older versions of PyTorch cannot be told, and on a GPU that is said.
    """
    config: Any = importlib.import_module("torch._inductor.config")
    if hasattr(config, "deterministic"):
        config.deterministic = True
    elif torch.cuda.is_available():
        warnings.warn(
            f"PyTorch {torch.__version__} times kernels when it compiles, each process for itself: the bits of a "
            "compiled run may depend on how it is divided. Newer versions choose by rule.",
            stacklevel=3,
        )
