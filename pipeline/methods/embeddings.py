"""The label embeddings that layers are compared with: their settings, and how they are pooled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, Self

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.versions import Mode, Versions

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings:
    """The dictionary of label embeddings that the layers compare their features with."""

    embedding_mode: Mode = "last"
    """Whose gradients change it. static: nobody's. last: the last layer's. in-turn: every layer's, one after another,
    each with AdamW moments of its own. shared-mean, shared-sum: the mean or sum of all layers', with one AdamW.
    per-layer: each layer has one of its own, as long as its features."""
    embedding_width: int | Literal["auto"] = "auto"
    """Length C_D of an embedding; layers pool it to theirs. auto: the longest features of any layer."""
    embedding_lag: int = 1
    """Steps δ that an update may take to reach the last layer. From 1 on no stage waits for it. Changes the numbers."""
    embedding_sync: Literal["lagged", "exact"] = "lagged"
    """exact: every layer reads what the step before wrote, as in plain sequential training. One batch at a time."""
    embedding_lr: float | Literal["lr"] = "lr"
    """Learning rate of the dictionary's AdamW. lr: the layers'."""

    def check(self) -> None:
        """Raises UserError where a value is out of range."""
        if self.embedding_width != "auto" and self.embedding_width < 1:
            raise UserError(f"`embedding_width` {self.embedding_width}: must be at least 1, or auto.")
        if self.embedding_lag < 0:
            raise UserError(f"`embedding_lag` {self.embedding_lag}: must be at least 0.")
        if self.embedding_lr != "lr" and not 0 < self.embedding_lr < math.inf:
            raise UserError(f"`embedding_lr` {self.embedding_lr}: must be above 0, or lr for the layers' rate.")

    def resolve(self, features: Sequence[int]) -> Self:
        """These settings with a width, for layers with features so long. Raises UserError where it is too short."""
        if self.embedding_width == "auto":
            return replace(self, embedding_width=max(features))
        longer = [index + 1 for index, length in enumerate(features) if length > self.embedding_width]
        if longer and self.embedding_mode != "per-layer":
            raise UserError(
                f"`embedding_width` {self.embedding_width}: layer {longer[0]} has features of length "
                f"{features[longer[0] - 1]}, and embeddings are pooled to that, so they cannot be shorter. "
                f"Give at least {max(features)}, or auto."
            )
        return self

    @property
    def shared(self) -> bool:
        """Whether layers share one dictionary."""
        return self.embedding_mode != "per-layer"

    def versions(self, num_layers: int, steps_per_epoch: int) -> Versions:
        """The versions of a run's dictionary."""
        return Versions(
            mode=self.embedding_mode,
            lag=self.embedding_lag,
            exact=self.embedding_sync == "exact",
            num_layers=num_layers,
            steps_per_epoch=steps_per_epoch,
        )


def pool_embeddings(embeddings: Tensor, length: int) -> Tensor:
    """Embeddings (Z, C_D) pooled to (Z, length): the mean over length bins as even as can be, neighbours overlapping.

    Bin i is [⌊i·C_D/length⌋, ⌈(i+1)·C_D/length⌉): ``torch.nn.AdaptiveAvgPool1d``, as a product with a fixed matrix,
    which has a deterministic gradient on every device. Source: Anonymous 2023, eq. 2; Choi et al.
    2024 (the authors' answers to its reviewers).
    """
    width = embeddings.shape[1]
    if width == length:
        return embeddings
    if length > width:
        raise ValueError(f"embeddings of length {width} cannot be pooled to {length}")
    return embeddings @ _bins(width, length, embeddings.dtype, embeddings.device)


@lru_cache(maxsize=256)
def _bins(width: int, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    bins = torch.zeros(width, length, dtype=dtype)
    for i in range(length):
        first, end = i * width // length, -(-(i + 1) * width // length)
        bins[first:end, i] = 1 / (end - first)
    return bins.to(device)
