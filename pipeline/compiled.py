"""``torch.compile`` for layers: once for all layers of one shape, kept on disk from run to run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

import torch

from pipeline.errors import UserError

_P = ParamSpec("_P")
_T = TypeVar("_T")
_SHAPES = 256  # different layers that a process may hold; PyTorch gives up after 8 unless told

ENOUGH_STEPS = 2000
"""Training steps from which --compile auto compiles. ViT[128 4 4] at batch 512 gains 0.01 to 0.05 s a step on
two cores, and compiling it anew takes about 25 s."""


def check_compiler(device: str) -> None:
    """Raises UserError where PyTorch would find nothing to compile with: for CPUs it writes C++."""
    if device == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise UserError(
            "--compile on a CPU needs a C++ compiler, and neither $CXX, g++ nor clang++ is found. "
            "Install one (Debian: apt install g++), or use --compile off."
        )


def compiled(function: Callable[_P, _T], how: Literal["on", "graphs"]) -> Callable[_P, _T]:
    """The function, compiled when it is called first, anew for every shape of its arguments.

    The compiled code belongs to the function and the shapes of what it is given, not to one layer's weights, so layers
    of one shape share it. It is kept in $TORCHINDUCTOR_CACHE_DIR, or beside the prepared data in the user's cache.

    Args:
        how: "graphs" replays each call as a CUDA graph. What a call returns lies where the next call writes.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "localpipe" / "compiled"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    torch._dynamo.config.recompile_limit = max(_SHAPES, torch._dynamo.config.recompile_limit)
    mode = "reduce-overhead" if how == "graphs" else None
    return torch.compile(function, dynamic=False, mode=mode)
