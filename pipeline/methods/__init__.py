"""How a layer learns: a file per group of methods, registered in ``METHODS``. How to write one: docs/extending.md."""

from __future__ import annotations

from pipeline.methods.base import (
    METHODS,
    Activations,
    BatchPosition,
    MethodConfig,
    MethodField,
    ModelInfo,
    PooledRule,
    Rule,
    StepContext,
)
from pipeline.methods.baseline import BaselineSettings
from pipeline.methods.cff import CffSettings
from pipeline.methods.cfl import CflSettings
from pipeline.methods.dcl import DclSettings

__all__ = [
    "METHODS",
    "Activations",
    "BaselineSettings",
    "BatchPosition",
    "CffSettings",
    "CflSettings",
    "DclSettings",
    "MethodConfig",
    "MethodField",
    "ModelInfo",
    "PooledRule",
    "Rule",
    "StepContext",
]
