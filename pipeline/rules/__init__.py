"""How a layer learns: a file per method family, its settings a member of ``MethodSettings``."""

from __future__ import annotations

from pipeline.rules.base import Rule, Streams
from pipeline.rules.cff import CffSettings

MethodSettings = CffSettings

__all__ = ["CffSettings", "MethodSettings", "Rule", "Streams"]
