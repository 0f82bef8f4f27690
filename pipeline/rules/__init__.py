"""How a layer learns: a file per method family, registered in ``METHODS``. docs/extending.md says how to write one."""

from __future__ import annotations

from pipeline.rules.base import METHODS, Context, Method, MethodField, Outline, Place, PooledRule, Rule, Streams
from pipeline.rules.baseline import BaselineSettings
from pipeline.rules.cff import CffSettings
from pipeline.rules.cfl import CflSettings
from pipeline.rules.dcl import DclSettings

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
