"""The learning system: layers that learn locally, stages, channels, data. Knows nothing of Ray."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.errors import RunError, UserError

if TYPE_CHECKING:
    from pipeline.config.settings import Settings
    from pipeline.export import Network, load
    from pipeline.runtime.here import train

__all__ = ["Network", "RunError", "Settings", "UserError", "load", "train"]

_WHERE = {
    "Network": "pipeline.export",
    "Settings": "pipeline.config.settings",
    "load": "pipeline.export",
    "train": "pipeline.runtime.here",
}


def __getattr__(name: str) -> Any:
    """These bring torch along, which takes seconds: they come when they are asked for."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
