"""A method of one's own, in a file outside localpipe: it is launched, pipelined and found again like those inside.

    launch --plugin examples/plugin_centres.py list
    launch centres-vit --plugin examples/plugin_centres.py --stages 2
    launch eval RUN

Each layer pulls pooled features towards a learned centre of their class, and away from the nearest other one. It
predicts the class of the nearest centre.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from launch.presets.base import Preset
from pipeline.config.settings import DataSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.methods import METHODS, Activations, MethodConfig, ModelInfo, Rule, StepContext
from pipeline.nets import Layer, VitSettings


@METHODS.register
@dataclass(frozen=True, kw_only=True)
class CentreSettings(MethodConfig):
    """Learned class centres, each layer its own."""

    kind: ClassVar[str] = "plugin-centres"
    centre_margin: float = 1.0
    """How much nearer the own centre shall be than any other."""

    def predicts(self) -> bool:
        return True

    def build(self, index: int, layer: Layer, model_info: ModelInfo) -> CentreRule:
        return CentreRule(self.centre_margin, layer.features, model_info.num_classes)


class CentreRule(Rule):
    def __init__(self, margin: float, features: int, num_classes: int) -> None:
        super().__init__()
        self.gap = margin
        self.centres = nn.Parameter(torch.randn(num_classes, features))  # learns with the layer, is saved with it

    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        return nn.functional.multi_margin_loss(self.scores(layer, outputs, context), context.labels, margin=self.gap)

    def scores(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        return -torch.cdist(self.features(layer, outputs).float(), self.centres)


PRESETS = {
    "centres-vit": Preset(
        title="Learned class centres (plug-in), ViT[32 2 3] on digits",
        settings=Settings(
            data=DataSettings(data="digits"),
            net=VitSettings(dim=32, heads=2, depth=3),
            method=CentreSettings(),
            train=TrainSettings(epochs=20, batch_size=64, lr=1e-3, keep="accuracy"),
            readout=ReadoutSettings(mode="none"),
        ),
    )
}
