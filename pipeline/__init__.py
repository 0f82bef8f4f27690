"""The learning system: layers that learn locally, stages, channels, data. Knows nothing of Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import RunError, UserError

if TYPE_CHECKING:
    from pipeline.export import Network, load

__all__ = ["Network", "RunError", "UserError", "load"]


def __getattr__(name: str) -> Any:
    """``load`` and ``Network`` bring torch along, which takes seconds: they come when they are asked for."""
    if name not in ("Network", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline import export  # noqa: PLC0415

    return getattr(export, name)
