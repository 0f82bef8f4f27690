"""Dictionary contrastive learning: its loss against a double loop over classes and feature vectors, its defaults."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.errors import UserError
from pipeline.methods import BatchPosition, CflSettings, DclSettings, ModelInfo, StepContext
from pipeline.methods.dcl import DclRule
from pipeline.methods.embeddings import EmbeddingSettings
from pipeline.nets import Layer, MlpSettings, VitSettings
from tests.support import outputs_of

NUM_CLASSES = 5
LABELS = torch.tensor([0, 2, 1, 0, 0, 2, 3])

Similarities = list[list[float]]


def dot(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def pooled(embedding: list[float], length: int) -> list[float]:
    """AdaptiveAvgPool1d as the authors name it: bin i is [⌊i·C_D/C⌋, ⌈(i+1)·C_D/C⌉)."""
    width = len(embedding)
    bins = [embedding[math.floor(i * width / length) : math.ceil((i + 1) * width / length)] for i in range(length)]
    return [math.fsum(part) / len(part) for part in bins]


def over_classes_and_vectors(tokens: Tensor, dictionary: Tensor) -> Similarities:
    """(1/T) Σ_k ⟨h_k, pool(t_z)⟩ of every sample and class; tokens (N, T, C)."""
    similarities = []
    for vectors in tokens.double().tolist():
        row = []
        for embedding in dictionary.double().tolist():
            t = pooled(embedding, len(vectors[0]))
            row.append(math.fsum(dot(h, t) for h in vectors) / len(vectors))
        similarities.append(row)
    return similarities


def cross_entropy(similarities: Similarities, labels: list[int]) -> float:
    total = 0.0
    for row, label in zip(similarities, labels, strict=True):
        top = max(row)
        total += top + math.log(math.fsum(math.exp(s - top) for s in row)) - row[label]
    return total / len(labels)


def random_of(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rule_of(layer: Layer, **values: Any) -> DclRule:
    return DclSettings(**values).build(0, layer, ModelInfo(num_layers=3, num_classes=NUM_CLASSES))


def loss_of(
    rule: DclRule, layer: Layer, activations: Tensor, dictionary: Tensor | None, noise_seed: int | None = None
) -> Tensor:
    random = None if noise_seed is None else torch.Generator().manual_seed(noise_seed)
    context = StepContext(labels=LABELS, where=BatchPosition(training=True), shared=dictionary, generator=random)
    return rule.loss(layer, outputs_of(layer, activations, rule), context)


def vit_layer(dim: int = 4) -> Layer:
    return VitSettings(dim=dim, heads=1, patch=2).build(1, (1, 6, 4))


@pytest.mark.parametrize("length", [4, 8, 11])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_loss_equals_a_double_loop_over_classes_and_tokens(length: int, scale: float) -> None:
    """Choi et al. 2024, eq. 2: a class's similarity is the mean over a sample's feature vectors."""
    tokens, dictionary = random_of(7, 6, 4, seed=1, scale=scale), random_of(NUM_CLASSES, length, seed=2)
    expected = cross_entropy(over_classes_and_vectors(tokens, dictionary), LABELS.tolist())
    assert loss_of(rule_of(vit_layer()), vit_layer(), tokens, dictionary).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("groups", [1, 3])
def test_loss_equals_a_double_loop_over_classes_and_groups_of_units(groups: int) -> None:
    layer = MlpSettings(width=12, groups=groups, depth=1).build(0, (1, 2, 2))
    activations, dictionary = random_of(7, 12, seed=3), random_of(NUM_CLASSES, 16, seed=4)
    tokens = torch.stack([torch.stack(row.split(12 // groups)) for row in activations])
    expected = cross_entropy(over_classes_and_vectors(tokens, dictionary), LABELS.tolist())
    assert loss_of(rule_of(layer), layer, activations, dictionary).item() == pytest.approx(expected, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 6), length=st.integers(4, 13), seed=st.integers(0, 2**31))
def test_loss_equals_the_double_loop_for_any_batch(tokens: int, length: int, seed: int) -> None:
    activations, dictionary = random_of(7, tokens, 4, seed=seed), random_of(NUM_CLASSES, length, seed=seed + 1)
    expected = cross_entropy(over_classes_and_vectors(activations, dictionary), LABELS.tolist())
    loss = loss_of(rule_of(vit_layer()), vit_layer(), activations, dictionary)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_gradients_equal_softmax_minus_one_hot_in_loops() -> None:
    """∂L/∂h_nk = Σ_z (softmax − one-hot)·t_z / (N·T) and ∂L/∂t_z = Σ_n (softmax − one-hot)·h̄_n / N."""
    tokens, dictionary = random_of(7, 6, 4, seed=5).requires_grad_(), random_of(NUM_CLASSES, 4, seed=6).requires_grad_()
    loss = loss_of(rule_of(vit_layer()), vit_layer(), tokens, dictionary)
    of_tokens, of_embeddings = torch.autograd.grad(loss, (tokens, dictionary))
    expected_h = torch.zeros(7, 6, 4, dtype=torch.float64)
    expected_t = torch.zeros(NUM_CLASSES, 4, dtype=torch.float64)
    similarities = over_classes_and_vectors(tokens.detach(), dictionary.detach())
    for n, label in enumerate(LABELS.tolist()):
        total = math.fsum(math.exp(s) for s in similarities[n])
        for z in range(NUM_CLASSES):
            pull = (math.exp(similarities[n][z]) / total - (z == label)) / 7
            for k in range(6):
                expected_h[n, k] += pull * dictionary[z].detach().double() / 6
                expected_t[z] += pull * tokens[n, k].detach().double() / 6
    torch.testing.assert_close(of_tokens.double(), expected_h, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(of_embeddings.double(), expected_t, rtol=1e-4, atol=1e-7)


def test_extreme_similarities_give_a_finite_loss_and_gradient() -> None:
    tokens = random_of(7, 6, 4, seed=7, scale=1e4).requires_grad_()
    dictionary = random_of(NUM_CLASSES, 4, seed=8).requires_grad_()
    loss = loss_of(rule_of(vit_layer()), vit_layer(), tokens, dictionary)
    expected = cross_entropy(over_classes_and_vectors(tokens.detach(), dictionary.detach()), LABELS.tolist())
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, (tokens, dictionary)))


def test_cosine_variant_compares_the_direction_of_every_token_over_the_temperature() -> None:
    """As in the authors' program: (1/T) Σ_k ⟨h_k/‖h_k‖, pool(t_z/‖t_z‖)⟩/τ, not one cosine of the two means."""
    tokens, dictionary = random_of(7, 6, 4, seed=9), random_of(NUM_CLASSES, 8, seed=10)
    similarities = []
    for vectors in tokens.double().tolist():
        directions = [[value / math.sqrt(dot(h, h)) for value in h] for h in vectors]
        row = []
        for embedding in dictionary.double().tolist():
            t = pooled([value / math.sqrt(dot(embedding, embedding)) for value in embedding], 4)
            row.append(math.fsum(dot(h, t) for h in directions) / len(directions) / 0.2)
        similarities.append(row)
    loss = loss_of(rule_of(vit_layer(), similarity="cosine", temperature=0.2), vit_layer(), tokens, dictionary)
    assert loss.item() == pytest.approx(cross_entropy(similarities, LABELS.tolist()), rel=1e-5)


def test_dot_product_knows_no_temperature() -> None:
    tokens, dictionary = random_of(7, 6, 4, seed=11), random_of(NUM_CLASSES, 4, seed=12)
    losses = [loss_of(rule_of(vit_layer(), temperature=t), vit_layer(), tokens, dictionary) for t in (0.07, 1.0)]
    assert torch.equal(*losses)


def test_embeddings_have_no_noise_while_training_either() -> None:
    tokens, dictionary = random_of(7, 6, 4, seed=13), random_of(NUM_CLASSES, 4, seed=14)
    rule = rule_of(vit_layer())
    noisy, plain = (loss_of(rule, vit_layer(), tokens, dictionary, noise_seed=seed) for seed in (1, None))
    assert torch.equal(noisy, plain)


def test_layer_predicts_by_the_similarities_that_its_loss_sees() -> None:
    tokens, dictionary = random_of(7, 6, 4, seed=15), random_of(NUM_CLASSES, 11, seed=16)
    rule = rule_of(vit_layer())
    scores = rule.scores(
        vit_layer(),
        outputs_of(vit_layer(), tokens),
        StepContext(labels=LABELS, where=BatchPosition(), shared=dictionary),
    )
    assert scores is not None
    torch.testing.assert_close(scores, torch.tensor(over_classes_and_vectors(tokens, dictionary)), rtol=1e-5, atol=1e-6)


def test_loss_is_computed_in_float32_whatever_the_layer_gives() -> None:
    tokens, dictionary = random_of(7, 6, 4, seed=17).bfloat16(), random_of(NUM_CLASSES, 4, seed=18)
    loss = loss_of(rule_of(vit_layer()), vit_layer(), tokens, dictionary)
    assert loss.dtype == torch.float32


def test_layer_with_embeddings_of_its_own_learns_them() -> None:
    """DC-FL-LD: no shared dictionary, and embeddings as long as the layer's features."""
    rule = rule_of(vit_layer(6), embedding=EmbeddingSettings(embedding_mode="per-layer"))
    tokens = random_of(7, 6, 6, seed=19)
    assert rule.embeddings is not None
    assert rule.embeddings.shape == (NUM_CLASSES, 6)
    loss = loss_of(rule, vit_layer(6), tokens, None)
    expected = cross_entropy(over_classes_and_vectors(tokens, rule.embeddings.detach()), LABELS.tolist())
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, rule.embeddings)
    assert gradient.abs().sum() > 0


def test_modes_are_the_papers_unless_set() -> None:
    """The program of DCL sums all layers' gradients; in CFL the last layer's alone count (Anonymous 2023, eq. 3)."""
    assert DclSettings().embedding.embedding_mode == "in-turn"
    assert CflSettings().embedding.embedding_mode == "last"
    assert (DclSettings().similarity, DclSettings().temperature) == ("dot", 0.07)


@pytest.mark.parametrize("method", [CflSettings(), DclSettings()])
def test_layers_predict_by_themselves_and_share_a_dictionary(method: CflSettings | DclSettings) -> None:
    assert method.predicts()
    assert method.label_embeddings() is method.embedding


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (DclSettings(temperature=0.0), "`temperature` 0.0"),
        (DclSettings(embedding=EmbeddingSettings(embedding_lr=0.0)), "`embedding_lr` 0.0"),
    ],
)
def test_bad_setting_is_refused_by_name(bad: DclSettings, said: str) -> None:
    with pytest.raises(UserError, match=said):
        bad.check()


def test_pooling_here_is_torchs() -> None:
    """The bins that this file's loops are built on."""
    embedding = random_of(11, seed=20).double()
    theirs = F.adaptive_avg_pool1d(embedding[None], 4)[0]
    assert pooled(embedding.tolist(), 4) == pytest.approx(theirs.tolist(), rel=1e-12)
