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
from pipeline.methods.cafo import CafoSettings
from pipeline.methods.cff import CffSettings
from pipeline.methods.cfl import CflSettings
from pipeline.methods.dcl import DclSettings
from pipeline.methods.ff import CollabSettings, FfSettings, SymbaSettings
from pipeline.methods.ffcl import FfclSettings
from pipeline.methods.iffcl import IffclSettings
from pipeline.methods.infopro import InfoproSettings
from pipeline.methods.local_losses import DglSettings, PredsimSettings
from pipeline.methods.scff import ScffSettings

__all__ = [
    "METHODS",
    "Activations",
    "AuglocalSettings",
    "BaselineSettings",
    "BatchPosition",
    "CafoSettings",
    "CffSettings",
    "CflSettings",
    "CollabSettings",
    "DclSettings",
    "DglSettings",
    "FfSettings",
    "FfclSettings",
    "IffclSettings",
    "InfoproSettings",
    "MethodConfig",
    "MethodField",
    "ModelInfo",
    "PooledRule",
    "PredsimSettings",
    "Rule",
    "ScffSettings",
    "StepContext",
    "SymbaSettings",
]
