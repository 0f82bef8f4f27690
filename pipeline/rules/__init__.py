"""How a layer learns: a file per method family, its settings a member of ``MethodSettings``."""

from __future__ import annotations

from pipeline.rules.base import Rule, RuleSettings, Streams
from pipeline.rules.cff import CffSettings

MethodSettings = CffSettings

_METHODS: tuple[type[RuleSettings], ...] = (CffSettings,)  # held to the protocol by the type checker

__all__ = ["CffSettings", "MethodSettings", "Rule", "Streams"]
