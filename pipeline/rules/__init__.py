"""How a layer learns: a file per method family, one registration each in ``pipeline.rules.build``."""

from __future__ import annotations

from pipeline.rules.base import Rule, Streams
from pipeline.rules.cff import CffSettings

MethodSettings = CffSettings

__all__ = ["CffSettings", "MethodSettings", "Rule", "Streams"]
