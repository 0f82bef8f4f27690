"""How a layer learns: a file per group of methods, registered in ``METHODS``. How to write one: docs/extending.md."""

from __future__ import annotations

from pipeline.methods.auglocal import AuglocalSettings
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
from pipeline.methods.ff import CollabSettings, FfSettings, SymbaSettings
from pipeline.methods.infopro import InfoproSettings
from pipeline.methods.local_losses import DglSettings, PredsimSettings

__all__ = [
    "METHODS",
    "Activations",
    "AuglocalSettings",
    "BaselineSettings",
    "BatchPosition",
    "CffSettings",
    "CflSettings",
    "CollabSettings",
    "DclSettings",
    "DglSettings",
    "FfSettings",
    "InfoproSettings",
    "MethodConfig",
    "MethodField",
    "ModelInfo",
    "PooledRule",
    "PredsimSettings",
    "Rule",
    "StepContext",
    "SymbaSettings",
]
