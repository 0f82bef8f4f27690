"""How a layer learns: a file per method family, registered in ``METHODS``. docs/extending.md says how to write one."""

from __future__ import annotations

from pipeline.methods.base import METHODS, Context, Method, MethodField, Outline, Place, PooledRule, Rule, Streams
from pipeline.methods.baseline import BaselineSettings
from pipeline.methods.cff import CffSettings
from pipeline.methods.cfl import CflSettings
from pipeline.methods.dcl import DclSettings

__all__ = [
    "METHODS",
    "BaselineSettings",
    "CffSettings",
    "CflSettings",
    "Context",
    "DclSettings",
    "Method",
    "MethodField",
    "Outline",
    "Place",
    "PooledRule",
    "Rule",
    "Streams",
]
