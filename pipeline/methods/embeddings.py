"""The label embeddings that layers are compared with: their settings, and how they are pooled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, Self

import torch
from torch import Tensor

from pipeline import rng
from pipeline.errors import UserError, shortened
from pipeline.methods.adamw import AdamW, load_optimizer
from pipeline.methods.shared_state import SharedState, TrainingInfo
from pipeline.nets.limits import WIDEST
from pipeline.versions import LONGEST_LAG, Mode, Update, Versions


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings:
    """The label embeddings, one for each class, that the layers compare their features with."""

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
    """Learning rate of the label embeddings' AdamW. lr: the layers'."""

    def check(self) -> None:
        """Raises UserError where a value is out of range."""
        if self.embedding_width != "auto" and not 1 <= self.embedding_width <= WIDEST:
            raise UserError(
                f"`embedding_width` {shortened(self.embedding_width)}: must be at least 1 and at most {WIDEST:,}, or "
                "auto."
            )
        if not 0 <= self.embedding_lag <= LONGEST_LAG:
            raise UserError(
                f"`embedding_lag` {shortened(self.embedding_lag)}: must be at least 0 and at most {LONGEST_LAG:,}."
            )
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
        """Whether all layers share the same label embeddings."""
        return self.embedding_mode != "per-layer"

    def versions(self, num_layers: int, steps_per_epoch: int) -> Versions:
        """The versions of a run's label embeddings."""
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


class LabelEmbeddings(SharedState):
    """Label embeddings (Z, C_D) as the layers share them, with their AdamW.

    A version takes one optimizer's step on the layers' combined gradient, or in turn a step of each layer's own one.
    """

    title = "label embeddings"
    advice = "A lower `lr` or `embedding_lr` helps most."

    def __init__(self, settings: EmbeddingSettings, info: TrainingInfo) -> None:
        assert settings.shared, "asked for only where layers share them"
        assert settings.embedding_width != "auto", "resolve() gives the width"
        self._mode, self._info = settings.embedding_mode, info
        self.versions = settings.versions(info.num_layers, info.steps_per_epoch)
        generator = torch.Generator().manual_seed(rng.torch_seed(info.seed, "init-embeddings"))
        shape = (info.num_classes, settings.embedding_width)
        self.values = self._parameter = torch.nn.Parameter(torch.randn(shape, generator=generator))
        self._lr = info.lr if settings.embedding_lr == "lr" else settings.embedding_lr
        in_turn = self._mode == "in-turn"
        self._optimizers = {
            prefix: AdamW([self._parameter], lr=self._lr, weight_decay=info.weight_decay, fused=True)
            for prefix in ([f"layers.{layer}." for layer in range(info.num_layers)] if in_turn else [""])
        }

    def update(self, contributions: Mapping[Update, Tensor], updates: Sequence[Update]) -> None:
        if self._mode == "in-turn":
            for layer, step in updates:
                self._step(f"layers.{layer}.", contributions[layer, step], step)
            return
        combined = torch.zeros_like(self._parameter)
        for update in updates:
            combined += contributions[update]
        if self._mode == "shared-mean":
            combined /= len(updates)
        self._step("", combined, updates[0][1])

    def state(self) -> dict[str, Tensor]:
        return {
            f"{prefix}{name}": value
            for prefix, optimizer in self._optimizers.items()
            for name, value in optimizer.state.get(self._parameter, {}).items()
        }

    def load(self, values: Tensor, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            self._parameter.copy_(values)
        for prefix, optimizer in self._optimizers.items():
            fields = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            load_optimizer(optimizer, {self._parameter: fields})

    def _step(self, prefix: str, gradient: Tensor, step: int) -> None:
        optimizer = self._optimizers[prefix]
        self._parameter.grad = gradient
        optimizer.param_groups[0]["lr"] = self._lr * self._info.lr_factor(step // self._info.steps_per_epoch)
        optimizer.step()
