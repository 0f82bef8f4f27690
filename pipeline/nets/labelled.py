"""A Vision Transformer that is shown a label with the image: a patch in front of the image's (FF on ViT).

Source: Aghagolzadeh & Ezoji 2025, Section 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nets.base import Layer, Shape
from pipeline.nets.vit import EncoderLayer, PatchEmbedding, VitSettings


@dataclass(frozen=True, kw_only=True)
class LabelledVit(VitSettings):
    """A Vision Transformer whose first layer takes patches, the first of which stands for a label.

    That token goes through every layer with the others. Pooled features leave it out.
    """

    kind: ClassVar[str] = "labelled-vit"

    @classmethod
    def of(cls, net: VitSettings) -> Self:
        """The same net, shown a label."""
        return cls(**{field.name: getattr(net, field.name) for field in fields(net)})

    def build(self, index: int, shape: Shape) -> Layer:
        embedding = LabelledPatchEmbedding(self, shape) if index == 0 else None
        return self._placed(LabelledEncoderLayer(self.dim, self.heads, self.pooling, embedding), shape)


class LabelledPatchEmbedding(PatchEmbedding):
    """Patches (N, 1 + T, channels·patch²) → tokens (N, 1 + T, E). The label's patch has a position of its own."""

    def __init__(self, settings: VitSettings, shape: Shape) -> None:
        super().__init__(settings, shape)
        self.label_position = nn.Parameter(torch.randn(1, settings.dim))

    def forward(self, patches: Tensor) -> Tensor:
        return F.relu(self.project(patches)) + torch.cat([self.label_position, self.position])


class LabelledEncoderLayer(EncoderLayer):
    """An encoder layer, the first of whose tokens is the label's."""

    def tokens(self, activations: Tensor) -> Tensor:
        return activations[:, 1:]
