"""What a person touches: the command line `launch`, and ``train`` and ``resume`` for Python and notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launch.api import resume, train
    from launch.output.run import Run

__all__ = ["Run", "resume", "train"]


def __getattr__(name: str) -> Any:
    """They bring torch along, which takes seconds: they come when they are asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from launch import api  # noqa: PLC0415

    return getattr(api, name)
