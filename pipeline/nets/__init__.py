"""Models as lists of layers. A new net is one file here and one member of ``NetSettings``."""

from __future__ import annotations

from pipeline.nets.base import Layer, Net, Shape
from pipeline.nets.mlp import MlpSettings
from pipeline.nets.vit import VitSettings

NetSettings = VitSettings | MlpSettings

_NETS: tuple[type[Net], ...] = (VitSettings, MlpSettings)  # held to the protocol by the type checker

__all__ = ["Layer", "MlpSettings", "NetSettings", "Shape", "VitSettings"]
