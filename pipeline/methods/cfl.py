"""Contrastive forward learning with label embeddings (CFL).

Source: Anonymous 2023. Its are the numbers of equations below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.methods.base import METHODS, Activations, MethodConfig, ModelInfo, PooledRule, StepContext
from pipeline.methods.contrastive import marginal_contrastive_loss, supervised_contrast
from pipeline.methods.embeddings import EmbeddingSettings, pool_embeddings
from pipeline.nets.base import Layer

Similarity = Literal["dot", "cosine"]
Contrast = Literal["program", "printed"]


@dataclass(frozen=True, kw_only=True)
class LabelEmbeddingMethod(MethodConfig):
    """What the methods have in common that compare features with label embeddings."""

    similarity: Similarity = "dot"
    """How feature vectors are compared with label embeddings, in the mean over a sample's: by dot product, or by cosine
    over the temperature."""
    temperature: float = 0.07
    """Temperature τ of cosine similarities."""
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)

    def check(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise UserError(f"`temperature` {self.temperature}: must be a number above 0 (Anonymous 2023: 0.07).")
        self.embedding.check()

    def resolve(self, features: Sequence[int]) -> Self:
        return replace(self, embedding=self.embedding.resolve(features))

    def label_embeddings(self) -> EmbeddingSettings | None:
        return self.embedding

    def predicts(self) -> bool:
        return True


@METHODS.register
@dataclass(frozen=True, kw_only=True)
class CflSettings(LabelEmbeddingMethod):
    """Contrastive forward learning: λ1 L_batch + λ2 L_dict + λ3 L_feat. Total-B is 1, 0, 1; total-D is 0, 1, 1."""

    kind: ClassVar[str] = "cfl"
    batch_weight: float = 1.0
    """λ1, of the contrast L_batch with the label embeddings of the batch."""
    dictionary_weight: float = 0.0
    """λ2, of the contrast L_dict with the embeddings of all classes (eq. 6)."""
    feature_weight: float = 1.0
    """λ3, of the contrast L_feat between features."""
    embedding_noise: float = 1.0
    """Standard deviation of the noise on pooled label embeddings, in units of 1/C_l; 0 for none."""
    contrast: Contrast = "program"
    """What a sample's positives are contrasted with, in L_batch and L_feat. program: with each other and the negatives,
    as the authors' program does. printed: with the negatives alone, as eqs. 4 and 9 say, which has no lower bound."""

    def check(self) -> None:
        super().check()
        weights = {
            "`batch_weight`": self.batch_weight,
            "`dictionary_weight`": self.dictionary_weight,
            "`feature_weight`": self.feature_weight,
            "`embedding_noise`": self.embedding_noise,
        }
        for name, value in weights.items():
            if not 0 <= value < math.inf:
                raise UserError(f"{name} {value}: must be a number of at least 0.")
        if not self.batch_weight + self.dictionary_weight + self.feature_weight:
            raise UserError("`batch_weight`, `dictionary_weight` and `feature_weight` are all 0. Give one above it.")

    def build(self, index: int, layer: Layer, model_info: ModelInfo) -> CflRule:
        return CflRule(self, layer, model_info)


class LabelEmbeddingRule(PooledRule):
    """Features of one layer beside label embeddings pooled to their length: the shared ones, or the layer's own."""

    def __init__(self, settings: LabelEmbeddingMethod, layer: Layer, model_info: ModelInfo) -> None:
        super().__init__()
        self.similarity, self.temperature = settings.similarity, settings.temperature
        own = settings.embedding.embedding_mode == "per-layer"
        self.embeddings = nn.Parameter(torch.randn(model_info.num_classes, layer.features)) if own else None
        # By dot product pooled features do: the mean of the products is the product of the mean.
        self.sees_activations = self.similarity == "cosine"

    def forward(self, layer: Layer, activations: Activations, context: StepContext) -> Activations:
        if not self.sees_activations:
            return super().forward(layer, activations, context)
        return self.outputs(layer, layer(activations["x"]))

    def outputs(self, layer: Layer, activations: Tensor) -> Activations:
        """What ``run`` gives for a layer whose activations are these: to pass on, and what the loss sees."""
        outputs = {"x": activations.detach(), "pooled": layer.pool(activations)}
        if self.similarity == "cosine":
            outputs["compared"] = self.compared(layer.tokens(activations).float()).mean(dim=1)
        return outputs

    def features(self, layer: Layer, outputs: Activations) -> Tensor:
        """The mean of a sample's feature vectors as they are compared (N, C)."""
        return outputs["compared" if self.similarity == "cosine" else "pooled"]

    def targets(self, layer: Layer, context: StepContext) -> Tensor:
        """Every class's embedding as this layer sees it (Z, C)."""
        embeddings = self.embeddings if self.embeddings is not None else context.shared
        assert embeddings is not None, "the method has label embeddings, so whoever trains the layer reads it"
        return pool_embeddings(self.compared(embeddings), layer.features)

    def compared(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.similarity == "cosine" else vectors

    def compare(self, features: Tensor, targets: Tensor) -> Tensor:
        """(1/T) Σ_k ⟨h_k, t⟩, or (1/T) Σ_k ⟨h_k/‖h_k‖, pool(t/‖t‖)⟩/τ, as the program of Choi et al. 2024 has it."""
        similarities = features @ targets.T
        return similarities / self.temperature if self.similarity == "cosine" else similarities

    def scores(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor | None:
        """Similarity with every class's embedding, without noise (eq. 1)."""
        return self.compare(self.features(layer, outputs).float(), self.targets(layer, context))


class CflRule(LabelEmbeddingRule):
    """One layer's loss. Source: eqs. 4, 6, 9 and 10, and the authors' program for what is contrasted with what."""

    def __init__(self, settings: CflSettings, layer: Layer, model_info: ModelInfo) -> None:
        super().__init__(settings, layer, model_info)
        self.weights = (settings.batch_weight, settings.dictionary_weight, settings.feature_weight)
        self.noise = settings.embedding_noise
        self.contrast = settings.contrast
        # L_feat of the program sees all units of a fully connected layer, not the mean over their groups.
        self.sees_units = bool(
            settings.feature_weight and self.contrast == "program" and layer.readout_width != layer.features
        )
        self.sees_activations = self.sees_activations or self.sees_units

    def outputs(self, layer: Layer, activations: Tensor) -> Activations:
        outputs = super().outputs(layer, activations)
        if self.sees_units:
            outputs["units"] = layer.readout_input(activations)
        return outputs

    def loss(self, layer: Layer, outputs: Activations, context: StepContext) -> Tensor:
        h = self.features(layer, outputs).float()  # (N, C); float32 whatever the layer's precision: exp() follows
        targets, labels = self.targets(layer, context), context.labels
        of_batch, of_dictionary, of_features = self.weights
        program = self.contrast == "program"
        total = h.new_zeros(())
        if of_batch:
            similarities = self.compare(h, self._noisy(targets[labels], context))
            contrast = supervised_contrast if program else batch_contrast
            total = total + of_batch * contrast(similarities, labels)
        if of_dictionary:
            noisy = self._noisy(targets, context)
            total = total + of_dictionary * F.cross_entropy(self.compare(h, noisy), labels)
        if of_features:
            z = F.normalize(outputs["units" if self.sees_units else "pooled"].float(), dim=1)
            if program:
                contrasted = marginal_contrastive_loss(z, labels, temperature=self.temperature, margin=0.0)
            else:
                contrasted = feature_contrast(z, labels, temperature=self.temperature)
            total = total + of_features * contrasted
        return total

    def _noisy(self, targets: Tensor, context: StepContext) -> Tensor:
        """Embeddings with ε ~ N(0, 1/C²) on each element, drawn anew in every training step (eqs. 2 and 5)."""
        if not self.noise or context.generator is None:
            return targets
        noise = torch.randn(targets.shape, generator=context.generator, device=targets.device)
        return targets + noise * (self.noise / targets.shape[1])


def batch_contrast(similarities: Tensor, labels: Tensor) -> Tensor:
    """L_batch as eq. 4 prints it: each feature against the label embeddings of the batch.

    Args:
        similarities: (N, N); row n is feature n, column i the embedding drawn for sample i.
        labels: (N,) int64.

    Returns:
        Scalar mean of −log exp(s_nn) / Σ_{i: y_i ≠ y_n} exp(s_ni). A sample without any of another class in the batch
        has nothing to be contrasted with: it contributes 0 and still counts.
    """
    other = labels[:, None] != labels[None, :]
    contrasted = other.any(dim=1)
    # Rows without negatives are left whole: a row of nothing but -inf has no gradient that is a number.
    negatives = similarities.masked_fill(~other & contrasted[:, None], -torch.inf).logsumexp(dim=1)
    return torch.where(contrasted, negatives - similarities.diagonal(), 0.0).mean()


def feature_contrast(z: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """L_feat as eq. 9 prints it: features of one class towards each other and away from the others'.

    Read literally, eq. 7 counts a feature among its own positives, where exp(1/τ) would swamp the sum; it is left out.

    Args:
        z: unit-length features (N, C).
        labels: (N,) int64.
        temperature: τ.

    Returns:
        Scalar mean of −log [1/|P| Σ_{p∈P} exp(z_n·z_p/τ) / Σ_{i: y_i ≠ y_n} exp(z_n·z_i/τ)], P the others of n's class.
        A sample without positives, or without negatives, contributes 0 and still counts.
    """
    similarity = z @ z.T / temperature
    same = labels[:, None] == labels[None, :]
    positive = same & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    contrasted = positive.any(dim=1) & (~same).any(dim=1)
    whole = ~contrasted[:, None]
    positives = similarity.masked_fill(~(positive | whole), -torch.inf).logsumexp(dim=1)
    negatives = similarity.masked_fill(~(~same | whole), -torch.inf).logsumexp(dim=1)
    log_count = positive.sum(dim=1).clamp(min=1).to(z.dtype).log()
    return torch.where(contrasted, negatives - positives + log_count, 0.0).mean()
