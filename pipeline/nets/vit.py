"""Vision Transformers (Dosovitskiy et al. 2021), a layer each: ViT[E H L] of Aghagolzadeh & Ezoji 2025.

The first layer is the patch embedding with one encoder layer, each of the others one encoder layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.nets.attention import attention
from pipeline.nets.base import NETS, Layer, NetConfig, Shape, samples_at_a_time
from pipeline.nets.limits import check_depth, check_sizes
from pipeline.nets.patches import Patch, cut, listed, patch_grid, resolve_patch


@NETS.register
@dataclass(frozen=True, kw_only=True)
class VitSettings(NetConfig):
    """A Vision Transformer, ViT[dim heads depth] in the notation of Aghagolzadeh & Ezoji 2025."""

    kind: ClassVar[str] = "vit"
    dim: int = 128
    """Width E of each token."""
    heads: int = 4
    """Attention heads H; divides dim."""
    depth: int = 5
    """Encoder layers L; the patch embedding belongs to the first."""
    patch: Patch = "auto"
    """Patch side in pixels; divides the image side. auto: an eighth of it (4 at 32 pixels), at least 2."""
    pooling: Literal["mean", "token"] = "mean"
    """What the loss sees: the mean over tokens, or a class token (Aghagolzadeh & Ezoji 2025, Table 5)."""

    @property
    def num_layers(self) -> int:
        return self.depth

    def resolve(self, shape: Shape) -> Self:
        check_sizes(("dim", self.dim), ("heads", self.heads))
        check_depth("depth", self.depth)
        if self.dim % self.heads:
            allowed = [h for h in range(1, self.dim + 1) if self.dim % h == 0]
            raise UserError(
                f"`dim` {self.dim} is not divisible by `heads` {self.heads}. Heads that divide it: {listed(allowed)}."
            )
        return replace(self, patch=resolve_patch(self.patch, shape))

    def build(self, index: int, shape: Shape) -> Layer:
        embedding = PatchEmbedding(self, shape) if index == 0 else None
        return self._placed(EncoderLayer(self.dim, self.heads, self.pooling, embedding), shape)

    def _placed(self, layer: EncoderLayer, shape: Shape) -> EncoderLayer:
        """A layer that knows where over the image its tokens are."""
        layer.grid = patch_grid(resolve_patch(self.patch, shape), shape)
        layer.at_a_time = samples_at_a_time(math.prod(layer.grid))
        return layer

    def describe(self) -> str:
        return f"ViT[{self.dim} {self.heads} {self.depth}]"


class PatchEmbedding(nn.Module):
    """Images (N, channels, H, W) → tokens (N, T, E): patches → Linear → ReLU → + learned position N(0, 1)."""

    def __init__(self, settings: VitSettings, shape: Shape) -> None:
        super().__init__()
        assert isinstance(settings.patch, int), "resolve() gives the patch size"
        self.patch = settings.patch
        rows, columns = patch_grid(self.patch, shape)
        self.project = nn.Linear(shape[0] * self.patch**2, settings.dim)
        self.position = nn.Parameter(torch.randn(rows * columns, settings.dim))
        self.token = nn.Parameter(torch.randn(1, 1, settings.dim)) if settings.pooling == "token" else None

    def forward(self, images: Tensor) -> Tensor:
        tokens = F.relu(self.project(cut(images, self.patch))) + self.position
        if self.token is None:
            return tokens
        return torch.cat([self.token.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)


class EncoderLayer(Layer):
    """Tokens (N, T, E) → (N, T, E): x + MHA(LN(x)), then x + W₂·GELU(W₁·LN(x)), hidden width 2E, no dropout.

    The first layer of a net carries the patch embedding and takes images instead.
    """

    def __init__(self, dim: int, heads: int, pooling: str, embedding: PatchEmbedding | None) -> None:
        super().__init__()
        self.features = dim
        self.heads = heads
        self.pooling = pooling
        self.embedding = embedding
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 2 * dim)
        self.contract = nn.Linear(2 * dim, dim)
        # As torch.nn.MultiheadAttention initialises itself.
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor) -> Tensor:
        attended = self._attend(x)
        mixed: Tensor = attended + self.contract(self._hidden(attended))
        return mixed

    def forward_pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """With a gradient W₂ comes behind the pooling, without one before it."""
        attended = self._attend(x)
        hidden = self._hidden(attended)
        with torch.no_grad():
            activations = attended + self.contract(hidden)
        return activations, self.pool(attended) + self.contract(self.pool(hidden))

    def _attend(self, x: Tensor) -> Tensor:
        """Tokens after the attention's residual connection (N, T, E)."""
        if self.embedding is not None:
            x = self.embedding(x)
        attended: Tensor = x + self.project(attention(project_normed(self.norm1, self.qkv, x), self.heads))
        return attended

    def _hidden(self, x: Tensor) -> Tensor:
        """Hidden units of the perceptron (N, T, 2E)."""
        return F.gelu(self.expand(self.norm2(x)))

    def tokens(self, activations: Tensor) -> Tensor:
        return activations[:, 1:] if self.pooling == "token" else activations

    def pool(self, activations: Tensor) -> Tensor:
        return activations[:, 0] if self.pooling == "token" else super().pool(activations)


def project_normed(norm: nn.LayerNorm, linear: nn.Module, x: Tensor) -> Tensor:
    """linear(norm(x)), with the norm's scale and shift folded into the linear layer's weights.

    A locally trained layer wants no gradient at x. Folded, what stands between x and the weights has no parameters, so
    the linear layer need not send a gradient back either: an eighth of an encoder layer's multiplications.
    """
    if not isinstance(linear, nn.Linear):  # its backward pass has other weights (pipeline.nets.feedback)
        projected: Tensor = linear(norm(x))
        return projected
    plain = F.layer_norm(x, norm.normalized_shape, eps=norm.eps)
    # Sums of products, not a matrix product: autocast would round it.
    bias = linear.bias + (linear.weight * norm.bias).sum(dim=1)
    return F.linear(plain, linear.weight * norm.weight, bias)
