"""MLP-Mixer (Tolstikhin et al. 2021), one Mixer layer a layer, as in Choi et al. 2024: patches and one layer first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nets.base import NETS, Layer, NetConfig, Shape, samples_at_a_time
from pipeline.nets.limits import check_depth, check_sizes
from pipeline.nets.patches import Patch, cut, patch_grid, resolve_patch


@NETS.register
@dataclass(frozen=True, kw_only=True)
class MixerSettings(NetConfig):
    """An MLP-Mixer: perceptrons that mix tokens and channels in turn."""

    kind: ClassVar[str] = "mixer"
    dim: int = 256
    """Width E of each token."""
    depth: int = 6
    """Mixer layers; the patch embedding belongs to the first."""
    patch: Patch = "auto"
    """Patch side in pixels; divides the image side. auto: an eighth of it (4 at 32 pixels), at least 2."""
    token_hidden: int | Literal["auto"] = "auto"  # noqa: S105 (a token is a patch here)
    """Hidden units of the perceptron that mixes tokens. auto: half of dim, as in Tolstikhin et al. 2021."""
    channel_hidden: int | Literal["auto"] = "auto"
    """Hidden units of the perceptron that mixes channels. auto: four times dim, as in Tolstikhin et al. 2021."""

    @property
    def num_layers(self) -> int:
        return self.depth

    def resolve(self, shape: Shape) -> Self:
        token_hidden = self.token_hidden if isinstance(self.token_hidden, int) else max(1, self.dim // 2)
        channel_hidden = self.channel_hidden if isinstance(self.channel_hidden, int) else 4 * self.dim
        check_sizes(("dim", self.dim), ("token_hidden", token_hidden))
        check_depth("depth", self.depth)
        if self.channel_hidden != "auto":
            check_sizes(("channel_hidden", self.channel_hidden))
        patch = resolve_patch(self.patch, shape)
        return replace(self, patch=patch, token_hidden=token_hidden, channel_hidden=channel_hidden)

    def build(self, index: int, shape: Shape) -> Layer:
        patch, token_hidden, channel_hidden = self.patch, self.token_hidden, self.channel_hidden
        assert isinstance(patch, int), "resolve() gives the patch size"
        assert isinstance(token_hidden, int) and isinstance(channel_hidden, int), "resolve() gives the hidden units"
        embedding = PatchProjection(shape[0], patch, self.dim) if index == 0 else None
        return MixerLayer(self.dim, patch_grid(patch, shape), token_hidden, channel_hidden, embedding)

    def describe(self) -> str:
        return f"Mixer[{self.dim} {self.depth}]"


class PatchProjection(nn.Module):
    """Images (N, channels, H, W) → tokens (N, T, E): one linear map of each patch."""

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.project = nn.Linear(channels * patch**2, dim)

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.project(cut(images, self.patch))
        return tokens


class MixerLayer(Layer):
    """Tokens (N, T, E) → (N, T, E): x + W₂·GELU(W₁·LN(x)) over tokens, then x + W₄·GELU(W₃·LN(x)) over channels.

    The first layer of a net carries the patch embedding and takes images instead.
    """

    def __init__(
        self,
        dim: int,
        grid: tuple[int, int],
        token_hidden: int,
        channel_hidden: int,
        embedding: PatchProjection | None,
    ) -> None:
        super().__init__()
        self.features = dim
        self.grid = grid
        self.embedding = embedding
        num_tokens = grid[0] * grid[1]
        self.at_a_time = samples_at_a_time(num_tokens)
        self.norm1 = nn.LayerNorm(dim)
        self.expand_tokens = nn.Linear(num_tokens, token_hidden)
        self.contract_tokens = nn.Linear(token_hidden, num_tokens)
        self.norm2 = nn.LayerNorm(dim)
        self.expand_channels = nn.Linear(dim, channel_hidden)
        self.contract_channels = nn.Linear(channel_hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self._mix_tokens(x)
        mixed: Tensor = x + self.contract_channels(self._hidden(x))
        return mixed

    def forward_pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """With a gradient W₄ comes behind the pooling, without one before it."""
        x = self._mix_tokens(x)
        hidden = self._hidden(x)
        with torch.no_grad():
            activations = x + self.contract_channels(hidden)
        return activations, self.pool(x) + self.contract_channels(self.pool(hidden))

    def _mix_tokens(self, x: Tensor) -> Tensor:
        if self.embedding is not None:
            x = self.embedding(x)
        by_channel = self.norm1(x).transpose(1, 2)  # (N, E, T)
        mixed: Tensor = x + self.contract_tokens(F.gelu(self.expand_tokens(by_channel))).transpose(1, 2)
        return mixed

    def _hidden(self, x: Tensor) -> Tensor:
        return F.gelu(self.expand_channels(self.norm2(x)))

    def tokens(self, activations: Tensor) -> Tensor:
        return activations
