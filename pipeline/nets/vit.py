"""ViT[E H L] of seed 001: patch embedding and one encoder layer first, then one encoder layer each (methods.md §1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.nets.base import NETS, Layer, Net, Shape
from pipeline.nets.patches import Patch, cut, listed, patch_grid, resolve_patch


@NETS.register
@dataclass(frozen=True, kw_only=True)
class VitSettings(Net):
    """A Vision Transformer, ViT[dim heads depth] in the paper's notation."""

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
    """What the loss sees: the mean over tokens, or a class token (the paper's Table 5)."""

    @property
    def num_layers(self) -> int:
        return self.depth

    def resolve(self, shape: Shape) -> Self:
        for name, value in (("--dim", self.dim), ("--heads", self.heads), ("--depth", self.depth)):
            if value < 1:
                raise UserError(f"{name} {value}: must be at least 1.")
        if self.dim % self.heads:
            allowed = [h for h in range(1, self.dim + 1) if self.dim % h == 0]
            raise UserError(
                f"--dim {self.dim} is not divisible by --heads {self.heads}. Heads that divide it: {listed(allowed)}."
            )
        return replace(self, patch=resolve_patch(self.patch, shape))

    def build(self, index: int, shape: Shape) -> Layer:
        embedding = PatchEmbedding(self, shape) if index == 0 else None
        layer = EncoderLayer(self.dim, self.heads, self.pooling, embedding)
        layer.grid = patch_grid(resolve_patch(self.patch, shape), shape)
        return layer

    def describe(self) -> str:
        return f"ViT[{self.dim} {self.heads} {self.depth}]"


class PatchEmbedding(nn.Module):
    """Images (N, channels, H, W) → tokens (N, T, E): patches → Linear → ReLU → + learned position N(0, 1)."""

    def __init__(self, settings: VitSettings, shape: Shape) -> None:
        super().__init__()
        assert isinstance(settings.patch, int), "resolve() settles the patch size"
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
        if self.embedding is not None:
            x = self.embedding(x)
        x = x + self._attend(self.norm1(x))
        mixed: Tensor = x + self.contract(F.gelu(self.expand(self.norm2(x))))
        return mixed

    def _attend(self, x: Tensor) -> Tensor:
        n, t, e = x.shape
        heads = self.qkv(x).view(n, t, 3, self.heads, e // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (N, heads, T, E/heads)
        mixed = _attention(q, k, v)
        projected: Tensor = self.project(mixed.transpose(1, 2).reshape(n, t, e))
        return projected

    def tokens(self, activations: Tensor) -> Tensor:
        return activations[:, 1:] if self.pooling == "token" else activations

    def pool(self, activations: Tensor) -> Tensor:
        return activations[:, 0] if self.pooling == "token" else super().pool(activations)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.device.type != "cpu" or q.dtype == torch.float32:
        return F.scaled_dot_product_attention(q, k, v)
    # PyTorch 2.13's CPU kernel is slow backwards in bfloat16: 194 ms against 47 ms (512×64 tokens, E=128, 1 thread).
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
