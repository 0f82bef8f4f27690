"""How a net is shown a label together with an image, for methods that learn whether the two belong together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.nets.base import Layer, NetConfig, Shape
from pipeline.nets.labelled import LabelledPatchEmbedding, LabelledVit
from pipeline.nets.patches import cut
from pipeline.nets.vit import VitSettings


def labelled(net: NetConfig) -> NetConfig:
    """The net that can be shown labels: a Vision Transformer with a token more, any other net as it is.

    Raises:
        UserError: the net's loss sees a class token.
    """
    if not isinstance(net, VitSettings):
        return net
    if net.pooling != "mean":
        raise UserError(
            f"`pooling` {net.pooling}: goodness is that of the mean over tokens, and the label has the token in front. "
            "Use `pooling` mean."
        )
    return LabelledVit.of(net)


def check_room(net: NetConfig, shape: Shape, num_classes: int) -> None:
    """Refuses images without room for a label. Raises UserError."""
    _, height, width = shape
    if not isinstance(net, VitSettings) and num_classes > height * width:
        raise UserError(
            f"{net.describe()} is shown a label in an image's first pixels, one for each class: images of "
            f"{height}×{width} pixels have no room for {num_classes} classes. Use larger images (`image_size`), or a "
            "Vision Transformer, which is shown it as a patch of its own."
        )


class LabelInput(nn.Module):
    """Images with labels as the first layer takes them.

    A Vision Transformer gets a fixed random patch of the label's class in front of the image's patches, zeros for the
    neutral label (Aghagolzadeh & Ezoji 2025, Section 3.4; the random patches are those of Lee & Song 2023). Any other
    net gets the label one-hot in place of the first channel's first pixels, row by row (Hinton 2022).

    Args:
        scale: what codes of labels are multiplied by.

    Attributes:
        neutral: the label that stands for none.
    """

    codes: Tensor

    def __init__(self, first: Layer, num_classes: int, *, scale: float = 1.0) -> None:
        super().__init__()
        embedding = getattr(first, "embedding", None)
        self.patch = embedding.patch if isinstance(embedding, LabelledPatchEmbedding) else None
        if isinstance(embedding, LabelledPatchEmbedding):
            codes = torch.randn(num_classes, embedding.project.in_features)
        else:
            codes = torch.eye(num_classes)
        codes = scale * codes
        self.neutral = num_classes
        self.register_buffer("codes", torch.cat([codes, torch.zeros(1, codes.shape[1])]))  # (Z + 1, length)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images (N, channels, H, W) with labels (N,): patches (N, 1 + T, channels·patch²), or images."""
        codes = self.codes[labels]
        if self.patch is not None:
            return torch.cat([codes[:, None], cut(images, self.patch)], dim=1)
        pixels = images.flatten(1).clone()
        pixels[:, : codes.shape[1]] = codes
        return pixels.view_as(images)
