"""Models as lists of layers. A new net is one file here, registered in ``NETS``."""

from __future__ import annotations

from pipeline.nets.base import NETS, Dropout, Layer, NetConfig, NetField, Shape
from pipeline.nets.birnn import BirnnSettings
from pipeline.nets.cascade import CascadeSettings
from pipeline.nets.conv import ConvSettings
from pipeline.nets.mixer import MixerSettings
from pipeline.nets.mlp import MlpSettings
from pipeline.nets.paired import PairedConvSettings, PairedMlpSettings
from pipeline.nets.resnet import ResnetSettings
from pipeline.nets.vgg import VggSettings
from pipeline.nets.vit import VitSettings

__all__ = [
    "NETS",
    "BirnnSettings",
    "CascadeSettings",
    "ConvSettings",
    "Dropout",
    "Layer",
    "MixerSettings",
    "MlpSettings",
    "NetConfig",
    "NetField",
    "PairedConvSettings",
    "PairedMlpSettings",
    "ResnetSettings",
    "Shape",
    "VggSettings",
    "VitSettings",
]
