"""The losses of contrastive forward learning against double loops, their gradients, the noise, what a layer sees."""

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
from pipeline.layers.layer import LocalLayer
from pipeline.layers.shared_state import FixedState
from pipeline.layers.tallies import EvaluationTally
from pipeline.methods import BatchPosition, CflSettings, ModelInfo, StepContext
from pipeline.methods.cfl import CflRule, batch_contrast, feature_contrast
from pipeline.methods.contrastive import supervised_contrast
from pipeline.methods.embeddings import EmbeddingSettings
from pipeline.nets import Layer, MlpSettings, VitSettings
from tests.support import CPU, outputs_of, tiny_spec

Rows = list[list[float]]

LABELS = torch.tensor([0, 2, 1, 0, 0, 2, 3])  # class 1 and class 3 have one sample each
NUM_CLASSES = 5  # and class 4 none

# ---------------------------------------------------------------------------------------------------------------------
# The equations of Anonymous 2023, read aloud in Python floats


def dot(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def log_sum_exp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


def equation_4(h: Rows, t: Rows, labels: list[int]) -> float:
    """L_batch: −log exp⟨h_n, t_n⟩ / Σ over the batch's embeddings of other classes, in the mean over n."""
    total = 0.0
    for n in range(len(h)):
        negatives = [dot(h[n], t[i]) for i in range(len(h)) if labels[i] != labels[n]]
        if negatives:
            total += log_sum_exp(negatives) - dot(h[n], t[n])
    return total / len(h)


def equation_6(h: Rows, dictionary: Rows, labels: list[int]) -> float:
    """L_dict: −log exp⟨h_n, t⁺⟩ / Σ_z exp⟨h_n, t_z⟩, the sum over all classes, in the mean over n."""
    total = 0.0
    for n in range(len(h)):
        total += log_sum_exp([dot(h[n], t) for t in dictionary]) - dot(h[n], dictionary[labels[n]])
    return total / len(h)


def equation_9(z: Rows, labels: list[int], temperature: float) -> float:
    """L_feat: −log of the mean over n's positives, itself left out, of exp(·/τ) over the negatives' sum."""
    total = 0.0
    for n in range(len(z)):
        positives = [dot(z[n], z[p]) / temperature for p in range(len(z)) if p != n and labels[p] == labels[n]]
        negatives = [dot(z[n], z[i]) / temperature for i in range(len(z)) if labels[i] != labels[n]]
        if positives and negatives:
            log_of_each = [positive - log_sum_exp(negatives) for positive in positives]
            total -= log_sum_exp(log_of_each) - math.log(len(positives))
    return total / len(z)


def supervised(s: Rows, labels: list[int]) -> float:
    """What the authors' program makes of similarities s: Khosla et al.'s loss, the mean outside the logarithm."""
    total = 0.0
    for n in range(len(s)):
        positives = [s[n][p] for p in range(len(s)) if p != n and labels[p] == labels[n]]
        if positives:
            log_total = log_sum_exp([s[n][i] for i in range(len(s)) if i != n])
            total -= math.fsum(positive - log_total for positive in positives) / len(positives)
    return total / len(s)


def terms_of(
    contrast: str, h: Rows, t: Rows, units: Rows, labels: list[int], temperature: float
) -> tuple[float, float]:
    """L_batch of features and the batch's embeddings, and L_feat of features at the temperature."""
    z = unit(torch.tensor(units, dtype=torch.float64)).tolist()
    if contrast == "printed":
        return equation_4(h, t, labels), equation_9(z, labels, temperature)
    return (
        supervised([[dot(a, b) for b in t] for a in h], labels),
        supervised([[dot(a, b) / temperature for b in z] for a in z], labels),
    )


def random_rows(count: int, length: int, seed: int, scale: float = 1.0) -> Tensor:
    """(count, length) float64."""
    random = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, length, generator=random, dtype=torch.float64)


def some_labels(count: int, num_classes: int, seed: int) -> Tensor:
    return torch.randint(num_classes, (count,), generator=torch.Generator().manual_seed(seed))


def unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=1)


def close(value: float) -> Any:
    return pytest.approx(value, rel=1e-12, abs=1e-12)


def single(value: float) -> Any:
    """What float32 arithmetic makes of it."""
    return pytest.approx(value, rel=1e-5, abs=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# What the program contrasts


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("num_classes", [2, 3, 9])
def test_supervised_contrast_equals_a_double_loop(num_classes: int, scale: float) -> None:
    s, labels = random_rows(9, 9, 1, scale), some_labels(9, num_classes, 3)
    assert supervised_contrast(s, labels).item() == close(supervised(s.tolist(), labels.tolist()))


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 10), num_classes=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_supervised_contrast_equals_the_loop_for_any_batch(count: int, num_classes: int, seed: int) -> None:
    s, labels = random_rows(count, count, seed).requires_grad_(), some_labels(count, num_classes, seed)
    loss = supervised_contrast(s, labels)
    assert loss.item() == close(supervised(s.tolist(), labels.tolist()))
    (gradient,) = torch.autograd.grad(loss, s)
    assert torch.equal(gradient.diagonal(), torch.zeros(count, dtype=torch.float64)), "nothing is its own contrast"


def test_supervised_contrast_by_hand() -> None:
    """Two samples of class 0 and one of class 1, every similarity 0 but ⟨h_0, t_1⟩ = ln 3."""
    s = torch.zeros(3, 3, dtype=torch.float64)
    s[0, 1] = math.log(3)
    # Anchor 0: −ln(3/(3 + 1)); anchor 1: −ln(1/(1 + 1)); anchor 2 has no positive, and counts.
    assert supervised_contrast(s, torch.tensor([0, 0, 1])).item() == close((math.log(4 / 3) + math.log(2)) / 3)


def test_supervised_contrast_is_never_below_0_where_the_printed_one_has_no_bound() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    same = (labels[:, None] == labels[None, :]).double()
    for strength in (1.0, 10.0, 100.0):
        assert supervised_contrast(strength * same, labels).item() >= math.log(1 + 2 * math.exp(-strength)) - 1e-12
        assert batch_contrast(strength * same, labels).item() == close(math.log(2) - strength)


def test_gradient_of_supervised_contrast_passes_gradcheck() -> None:
    s = random_rows(7, 7, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: supervised_contrast(s, LABELS), (s,))


# ---------------------------------------------------------------------------------------------------------------------
# L_batch as printed


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("num_classes", [2, 3, 9])
def test_batch_contrast_equals_equation_4_in_a_double_loop(num_classes: int, scale: float) -> None:
    h, t, labels = random_rows(9, 4, 1, scale), random_rows(9, 4, 2), some_labels(9, num_classes, 3)
    loss = batch_contrast(h @ t.T, labels)
    assert loss.item() == close(equation_4(h.tolist(), t.tolist(), labels.tolist()))


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 10), num_classes=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_batch_contrast_equals_equation_4_for_any_batch(count: int, num_classes: int, seed: int) -> None:
    h, t, labels = random_rows(count, 3, seed), random_rows(count, 3, seed + 1), some_labels(count, num_classes, seed)
    loss = batch_contrast(h @ t.T, labels)
    assert loss.item() == close(equation_4(h.tolist(), t.tolist(), labels.tolist()))


def test_embedding_drawn_for_another_sample_of_the_class_is_neither_positive_nor_negative() -> None:
    h, t, labels = random_rows(4, 3, 4), random_rows(4, 3, 5), torch.tensor([0, 0, 1, 1])
    similarities = h @ t.T
    changed = similarities.clone()
    for n, i in ((0, 1), (1, 0), (2, 3), (3, 2)):
        changed[n, i] = 100.0
    assert batch_contrast(changed, labels).item() == batch_contrast(similarities, labels).item()


def test_gradient_of_batch_contrast_passes_gradcheck() -> None:
    h, t = random_rows(7, 4, 6).requires_grad_(), random_rows(7, 4, 7).requires_grad_()
    assert torch.autograd.gradcheck(lambda h, t: batch_contrast(h @ t.T, LABELS), (h, t))


@pytest.mark.parametrize("count", [1, 5])
def test_batch_contrast_of_one_class_has_no_loss_and_no_gradient(count: int) -> None:
    similarities = random_rows(count, count, 8).requires_grad_()
    loss = batch_contrast(similarities, torch.full((count,), 2))
    (gradient,) = torch.autograd.grad(loss, similarities)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(similarities))


def test_batch_contrast_of_a_class_with_a_single_sample_counts_that_sample() -> None:
    h, t, labels = random_rows(3, 2, 9), random_rows(3, 2, 10), torch.tensor([0, 0, 1])
    s = (h @ t.T).tolist()
    by_hand = [s[0][2] - s[0][0], s[1][2] - s[1][1], math.log(math.exp(s[2][0]) + math.exp(s[2][1])) - s[2][2]]
    assert batch_contrast(h @ t.T, labels).item() == close(sum(by_hand) / 3)


def test_batch_contrast_of_extreme_similarities_is_finite_and_right() -> None:
    similarities = torch.full((3, 3), -1e4).fill_diagonal_(1e4).requires_grad_()
    loss = batch_contrast(similarities, torch.tensor([0, 1, 1]))
    (gradient,) = torch.autograd.grad(loss, similarities)
    assert loss.item() == pytest.approx((-2e4 + math.log(2) - 2e4 - 2e4) / 3, rel=1e-6)
    assert torch.isfinite(gradient).all()
    assert batch_contrast(-similarities, torch.tensor([0, 1, 1])).item() == pytest.approx(2e4, rel=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# L_feat as printed


@pytest.mark.parametrize("temperature", [0.02, 0.07, 1.0])
@pytest.mark.parametrize("num_classes", [2, 3, 9])
def test_feature_contrast_equals_equation_9_in_a_double_loop(num_classes: int, temperature: float) -> None:
    z, labels = unit(random_rows(9, 4, 11)), some_labels(9, num_classes, 12)
    loss = feature_contrast(z, labels, temperature=temperature)
    assert loss.item() == close(equation_9(z.tolist(), labels.tolist(), temperature))


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 10), num_classes=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_feature_contrast_equals_equation_9_for_any_batch(count: int, num_classes: int, seed: int) -> None:
    z, labels = unit(random_rows(count, 3, seed)), some_labels(count, num_classes, seed)
    loss = feature_contrast(z, labels, temperature=0.07)
    assert loss.item() == close(equation_9(z.tolist(), labels.tolist(), 0.07))


def test_gradient_of_feature_contrast_passes_gradcheck() -> None:
    z = unit(random_rows(7, 4, 13)).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: feature_contrast(z, LABELS, temperature=0.3), (z,))


@pytest.mark.parametrize("count", [1, 5])
def test_feature_contrast_of_one_class_has_no_loss_and_no_gradient(count: int) -> None:
    z = unit(random_rows(count, 4, 14)).requires_grad_()
    loss = feature_contrast(z, torch.full((count,), 2), temperature=0.07)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(z))


def test_feature_without_positives_adds_nothing_but_counts_and_is_others_negative() -> None:
    z, labels = unit(random_rows(3, 4, 15)).requires_grad_(), torch.tensor([0, 0, 1])
    s = (z @ z.T / 0.07).tolist()
    loss = feature_contrast(z, labels, temperature=0.07)
    assert loss.item() == close(((s[0][2] - s[0][1]) + (s[1][2] - s[1][0]) + 0.0) / 3)
    assert torch.isfinite(torch.autograd.grad(loss, z)[0]).all()


def test_feature_contrast_where_no_feature_has_a_positive_is_0_with_no_gradient() -> None:
    z = unit(random_rows(4, 4, 16)).requires_grad_()
    loss = feature_contrast(z, torch.arange(4), temperature=0.07)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(z))


def test_feature_contrast_of_extreme_similarities_is_finite_and_right() -> None:
    """Positives apart and negatives alike, then the other way round; at τ = 1e-4 cosines become ±1e4."""
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]).requires_grad_()
    for labels, expected in ((torch.tensor([0, 0, 1, 1]), 2e4), (torch.tensor([0, 1, 0, 1]), -2e4)):
        loss = feature_contrast(z, labels, temperature=1e-4)
        (gradient,) = torch.autograd.grad(loss, z)
        assert loss.item() == pytest.approx(expected, rel=1e-3)
        assert torch.isfinite(gradient).all()


@settings(max_examples=50, deadline=None)
@given(count=st.integers(2, 12), num_classes=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_permuting_the_batch_permutes_the_gradients_and_keeps_the_losses(
    count: int, num_classes: int, seed: int
) -> None:
    h, t, labels = random_rows(count, 3, seed), random_rows(count, 3, seed + 1), some_labels(count, num_classes, seed)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + 2))

    def losses_and_gradients(h: Tensor, t: Tensor, labels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        h, t = h.clone().requires_grad_(), t.clone().requires_grad_()
        losses = [batch_contrast(h @ t.T, labels), feature_contrast(unit(h), labels, temperature=0.5)]
        return losses, list(torch.autograd.grad(losses[0] + losses[1], (h, t)))

    losses, gradients = losses_and_gradients(h, t, labels)
    permuted_losses, permuted_gradients = losses_and_gradients(h[order], t[order], labels[order])
    torch.testing.assert_close(permuted_losses, losses, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(permuted_gradients, [g[order] for g in gradients], rtol=1e-9, atol=1e-10)


# ---------------------------------------------------------------------------------------------------------------------
# A layer's loss


def layer_of(width: int = 4, groups: int = 1) -> Layer:
    return MlpSettings(width=width, groups=groups, depth=1).build(0, (1, 2, 2))


def rule_of(layer: Layer, kind: type[CflRule] = CflRule, **values: Any) -> CflRule:
    return kind(CflSettings(**values), layer, ModelInfo(num_layers=3, num_classes=NUM_CLASSES))


def context_of(dictionary: Tensor | None, labels: Tensor = LABELS, noise_seed: int | None = None) -> StepContext:
    """In training, with noise from a generator seeded so, or in evaluation, without."""
    random = None if noise_seed is None else torch.Generator().manual_seed(noise_seed)
    where = BatchPosition(training=noise_seed is not None)
    return StepContext(labels=labels, where=where, shared=dictionary, generator=random)


def features_and_dictionary(width: int = 4, length: int = 4) -> tuple[Tensor, Tensor]:
    """Features (7, width) and a dictionary (Z, length), float32."""
    return random_rows(len(LABELS), width, 20).float(), random_rows(NUM_CLASSES, length, 21).float()


WEIGHTS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 0), (0.5, 2, 3)]


@pytest.mark.parametrize("contrast", ["program", "printed"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_loss_is_the_weighted_sum_of_the_terms_that_are_on(weights: tuple[float, float, float], contrast: Any) -> None:
    h, dictionary = features_and_dictionary()
    chosen: dict[str, Any] = {"batch_weight": weights[0], "dictionary_weight": weights[1], "feature_weight": weights[2]}
    rule = rule_of(layer_of(), **chosen, temperature=0.2, contrast=contrast)
    labels, of_batch = LABELS.tolist(), dictionary[LABELS].tolist()
    batch, feature = terms_of(contrast, h.tolist(), of_batch, h.tolist(), labels, 0.2)
    terms = (batch, equation_6(h.tolist(), dictionary.tolist(), labels), feature)
    assert len({round(term, 3) for term in terms}) == 3, "no term stands in for another"
    expected = math.fsum(weight * term for weight, term in zip(weights, terms, strict=True))
    assert rule.loss(layer_of(), outputs_of(layer_of(), h, rule), context_of(dictionary)).item() == single(expected)


def test_weights_are_the_papers_total_b_unless_set() -> None:
    chosen = CflSettings()
    weights = (chosen.batch_weight, chosen.dictionary_weight, chosen.feature_weight)
    assert (weights, chosen.temperature, chosen.similarity, chosen.embedding_noise) == ((1, 0, 1), 0.07, "dot", 1)
    assert chosen.contrast == "program"


def test_dictionary_term_pulls_by_the_difference_of_softmax_and_one_hot() -> None:
    """∂L_dict/∂h_n = (softmax − one-hot)·t / N and ∂L_dict/∂t_z = Σ_n (softmax − one-hot)·h_n / N, in loops."""
    h, dictionary = (tensor.requires_grad_() for tensor in features_and_dictionary())
    rule = rule_of(layer_of(), batch_weight=0, dictionary_weight=1, feature_weight=0)
    loss = rule.loss(layer_of(), outputs_of(layer_of(), h, rule), context_of(dictionary))
    of_features, of_embeddings = torch.autograd.grad(loss, (h, dictionary))
    expected_h, expected_t = torch.zeros_like(h, dtype=torch.float64), torch.zeros_like(dictionary, dtype=torch.float64)
    rows, embeddings = h.tolist(), dictionary.tolist()
    for n, label in enumerate(LABELS.tolist()):
        log_total = log_sum_exp([dot(rows[n], t) for t in embeddings])
        for z in range(NUM_CLASSES):
            pull = (math.exp(dot(rows[n], embeddings[z]) - log_total) - (z == label)) / len(rows)
            for c in range(4):
                expected_h[n, c] += pull * embeddings[z][c]
                expected_t[z, c] += pull * rows[n][c]
    torch.testing.assert_close(of_features.double(), expected_h, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(of_embeddings.double(), expected_t, rtol=1e-4, atol=1e-6)


def test_batch_of_one_class_spoils_nothing() -> None:
    """As printed it has nothing to be contrasted with; in the program positives are, with each other."""
    h, dictionary = (tensor.requires_grad_() for tensor in features_and_dictionary())
    context = context_of(dictionary, labels=torch.zeros(7, dtype=torch.int64), noise_seed=1)
    for contrast in ("printed", "program"):
        rule = rule_of(layer_of(), contrast=contrast)
        loss = rule.loss(layer_of(), outputs_of(layer_of(), h, rule), context)
        gradients = torch.autograd.grad(loss, (h, dictionary))
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        if contrast == "printed":
            assert loss.item() == 0
            assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)
        else:
            assert loss.item() > 2 * math.log(6) - 1  # each is one of the six others, in both contrasts


def test_features_of_nothing_but_zeros_have_a_finite_loss_and_gradient() -> None:
    """A ReLU may put out a row of zeros, which has no direction."""
    h, dictionary = (tensor.requires_grad_() for tensor in features_and_dictionary())
    with torch.no_grad():
        h[2] = 0.0
    for similarity in ("dot", "cosine"):
        rule = rule_of(layer_of(), dictionary_weight=1.0, similarity=similarity)
        loss = rule.loss(layer_of(), outputs_of(layer_of(), h, rule), context_of(dictionary))
        assert torch.isfinite(loss)
        assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, (h, dictionary)))


@pytest.mark.parametrize("term", ["batch", "dictionary"])
@pytest.mark.parametrize("groups", [1, 3])
def test_cosine_variant_compares_the_direction_of_every_position(term: str, groups: int) -> None:
    """Directions are averaged, and embeddings pooled, after they have become unit-length: not the other way round."""
    layer = layer_of(width=4 * groups, groups=groups)
    h, dictionary = random_rows(7, 4 * groups, 20).float(), random_rows(NUM_CLASSES, 8, 21).float()
    of_batch, of_dictionary = float(term == "batch"), float(term == "dictionary")
    weights: dict[str, Any] = {"batch_weight": of_batch, "dictionary_weight": of_dictionary, "feature_weight": 0.0}
    rule = rule_of(layer, **weights, similarity="cosine", temperature=0.3)
    of_each = [unit(h.double().unflatten(1, (groups, 4))[:, group]) for group in range(groups)]
    towards = torch.stack(of_each).mean(dim=0).div(0.3).tolist()
    embeddings = F.adaptive_avg_pool1d(unit(dictionary.double()), 4)
    if term == "batch":
        s = [[dot(a, b) for b in embeddings[LABELS].tolist()] for a in towards]
        expected = supervised(s, LABELS.tolist())
    else:
        expected = equation_6(towards, embeddings.tolist(), LABELS.tolist())
    assert rule.loss(layer, outputs_of(layer, h, rule), context_of(dictionary)).item() == single(expected)
    assert rule.loss(layer, outputs_of(layer, 7 * h, rule), context_of(3 * dictionary)).item() == single(expected)


def test_cosine_similarity_by_hand() -> None:
    """Two positions (3, 0), (0, 1) and t = (4, 0, 0, 3): directions (1, 0), (0, 1); t/5 pooled to (0.4, 0.3)."""
    layer = layer_of(width=4, groups=2)
    rule = rule_of(layer, similarity="cosine", temperature=0.5)
    outputs = outputs_of(layer, torch.tensor([[3.0, 0.0, 0.0, 1.0]]), rule)
    scores = rule.scores(layer, outputs, context_of(torch.tensor([[4.0, 0.0, 0.0, 3.0]]), torch.tensor([0])))
    assert scores is not None
    assert scores.item() == single((0.4 + 0.3) / 2 / 0.5)


@pytest.mark.parametrize("contrast", ["program", "printed"])
def test_features_are_the_mean_over_the_groups_of_units(contrast: Any) -> None:
    """But the program's L_feat sees every unit."""
    layer = layer_of(width=12, groups=3)
    activations, dictionary = random_rows(7, 12, 22).float(), random_rows(NUM_CLASSES, 4, 23).float()
    means = [[sum(row[c + 4 * group] for group in range(3)) / 3 for c in range(4)] for row in activations.tolist()]
    rule = rule_of(layer, dictionary_weight=1, temperature=0.2, contrast=contrast)
    labels, of_batch = LABELS.tolist(), dictionary[LABELS].tolist()
    units = activations.tolist() if contrast == "program" else means
    batch, feature = terms_of(contrast, means, of_batch, units, labels, 0.2)
    expected = batch + equation_6(means, dictionary.tolist(), labels) + feature
    assert rule.loss(layer, outputs_of(layer, activations, rule), context_of(dictionary)).item() == single(expected)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("net", [MlpSettings(width=12, groups=3, depth=2), VitSettings(dim=4, heads=1, patch=2)])
def test_what_a_rule_runs_gives_its_layer_the_losss_gradient(net: Any, similarity: Any) -> None:
    """Also where the loss sees more than pooled features; nothing goes back to the layer before."""
    layer = net.build(1, (1, 6, 4))
    rule = rule_of(layer, dictionary_weight=1, similarity=similarity)
    x = random_rows(7, 12, 24).float() if isinstance(net, MlpSettings) else random_rows(7, 24, 24).float().view(7, 6, 4)
    dictionary = random_rows(NUM_CLASSES, 4, 25).float()
    outputs, twin = rule.forward(layer, {"x": x}, context_of(dictionary)), layer(x)
    assert not outputs["x"].requires_grad
    expected = rule.loss(layer, rule.outputs(layer, twin), context_of(dictionary))
    loss = rule.loss(layer, outputs, context_of(dictionary))
    parameters = list(layer.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_features_are_the_mean_over_tokens() -> None:
    layer = VitSettings(dim=4, heads=1, patch=2).build(1, (1, 6, 4))
    tokens, dictionary = random_rows(7 * 6, 4, 24).float().view(7, 6, 4), random_rows(NUM_CLASSES, 4, 25).float()
    means = [[sum(token[c] for token in sample) / 6 for c in range(4)] for sample in tokens.tolist()]
    rule = rule_of(layer, batch_weight=0, dictionary_weight=1, feature_weight=0)
    expected = equation_6(means, dictionary.tolist(), LABELS.tolist())
    assert rule.loss(layer, outputs_of(layer, tokens, rule), context_of(dictionary)).item() == single(expected)


@pytest.mark.parametrize("length", [8, 11])
def test_embeddings_are_pooled_to_the_layers_length(length: int) -> None:
    h, dictionary = features_and_dictionary(length=length)
    pooled = F.adaptive_avg_pool1d(dictionary.double(), 4)
    rule = rule_of(layer_of(), dictionary_weight=1, feature_weight=0)
    expected, _ = terms_of("program", h.tolist(), pooled[LABELS].tolist(), h.tolist(), LABELS.tolist(), 0.2)
    expected += equation_6(h.tolist(), pooled.tolist(), LABELS.tolist())
    assert rule.loss(layer_of(), outputs_of(layer_of(), h, rule), context_of(dictionary)).item() == single(expected)


def test_loss_is_computed_in_float32_whatever_the_layer_gives() -> None:
    h, dictionary = features_and_dictionary()
    rule = rule_of(layer_of(), dictionary_weight=1)
    loss = rule.loss(layer_of(), outputs_of(layer_of(), h.bfloat16(), rule), context_of(dictionary))
    assert loss.dtype == torch.float32
    assert torch.equal(
        loss, rule.loss(layer_of(), outputs_of(layer_of(), h.bfloat16().float(), rule), context_of(dictionary))
    )


# ---------------------------------------------------------------------------------------------------------------------
# The noise


class Watched(CflRule):
    """Remembers the embeddings that features are compared with."""

    seen: list[Tensor]

    def compare(self, features: Tensor, targets: Tensor) -> Tensor:
        self.seen = [*getattr(self, "seen", []), targets.detach()]
        return super().compare(features, targets)


def compared_with(width: int, context: StepContext, **values: Any) -> list[Tensor]:
    """The embeddings that L_batch (N, C) and L_dict (Z, C) compare features with."""
    layer = layer_of(width)
    rule = rule_of(layer, Watched, batch_weight=1, dictionary_weight=1, **values)
    assert isinstance(rule, Watched)
    rule.loss(layer, outputs_of(layer, torch.ones(len(context.labels), width), rule), context)
    return rule.seen


@pytest.mark.parametrize("width", [50, 200])
def test_noise_has_the_standard_deviation_of_one_over_the_features_length(width: int) -> None:
    """ε ~ N(0, 1/C²) in equations 2 and 5: 1/C² is the variance."""
    labels, dictionary = some_labels(400, NUM_CLASSES, 26), random_rows(NUM_CLASSES, width, 27).float()
    of_batch, _ = compared_with(width, context_of(dictionary, labels, noise_seed=28))
    noise = (of_batch - dictionary[labels]).double()
    assert noise.std().item() == pytest.approx(1 / width, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.02 / width)
    assert (noise.abs() < 1 / width).double().mean().item() == pytest.approx(0.683, abs=0.02), "it is normal"


def test_noise_is_a_standard_normal_of_the_steps_generator_over_the_length() -> None:
    dictionary = random_rows(NUM_CLASSES, 8, 29).float()
    of_batch, of_dictionary = compared_with(8, context_of(dictionary, noise_seed=30), embedding_noise=0.5)
    random = torch.Generator().manual_seed(30)
    assert torch.equal(of_batch, dictionary[LABELS] + torch.randn(7, 8, generator=random) * (0.5 / 8))
    assert torch.equal(of_dictionary, dictionary + torch.randn(NUM_CLASSES, 8, generator=random) * (0.5 / 8))


def test_each_sample_of_a_class_gets_noise_of_its_own() -> None:
    of_batch, _ = compared_with(
        8, context_of(torch.zeros(NUM_CLASSES, 8), torch.zeros(7, dtype=torch.int64), noise_seed=31)
    )
    assert len({tuple(row) for row in of_batch.tolist()}) == 7


def test_noise_is_added_to_embeddings_pooled_to_the_layers_length() -> None:
    """Its deviation follows the layer's length, not the dictionary's."""
    of_batch, _ = compared_with(4, context_of(torch.zeros(NUM_CLASSES, 64), noise_seed=32))
    assert torch.equal(of_batch, torch.randn(7, 4, generator=torch.Generator().manual_seed(32)) / 4)


@pytest.mark.parametrize("noise_seed", [None, 33])
def test_without_a_generator_or_with_noise_0_embeddings_are_compared_as_they_are(noise_seed: int | None) -> None:
    dictionary = random_rows(NUM_CLASSES, 8, 34).float()
    values = {} if noise_seed is None else {"embedding_noise": 0.0}
    of_batch, of_dictionary = compared_with(8, context_of(dictionary, noise_seed=noise_seed), **values)
    assert torch.equal(of_batch, dictionary[LABELS])
    assert torch.equal(of_dictionary, dictionary)


BATCH = torch.tensor([0, 1, 2, 0, 1, 2])


def local_layer(index: int, noise: float = 1.0) -> LocalLayer:
    """Always with the same initial weights, as each run's layer has them."""
    method = CflSettings(embedding_noise=noise, feature_weight=0.0).resolve([8, 8, 8])
    embeddings = FixedState(random_rows(3, 8, 35).float())
    return LocalLayer(tiny_spec(net=MlpSettings(width=8, depth=3), method=method), index, CPU, embeddings)


def loss_in_step(step: int, index: int = 1, noise: float = 1.0) -> float:
    _, loss = local_layer(index, noise).train({"x": torch.ones(6, 8)}, BATCH, BatchPosition(step=step, training=True))
    return loss.item()


def test_noise_is_fresh_in_every_step_and_belongs_to_it() -> None:
    losses = [loss_in_step(step) for step in range(4)]
    assert len(set(losses)) == 4
    assert [loss_in_step(step) for step in (3, 0)] == [losses[3], losses[0]], "whenever and wherever it is drawn"
    assert len({loss_in_step(step, noise=0.0) for step in range(4)}) == 1, "nothing else differs between the steps"


def test_layers_draw_different_noise() -> None:
    drawn = []
    for index in (0, 1):
        layer = local_layer(index)
        rule = rule_of(layer.net, Watched)
        assert isinstance(rule, Watched)
        layer.rule = rule
        activations = {"x": torch.ones(6, 1, 8, 8) if index == 0 else torch.ones(6, 8)}
        layer.train(activations, BATCH, BatchPosition(training=True))
        drawn.append(rule.seen[0])
    assert not torch.equal(*drawn)


def test_evaluation_has_no_noise() -> None:
    layer = local_layer(1)
    losses = []
    for step in (0, 1):
        tally = EvaluationTally.of(tiny_spec(), 1, 8, CPU)
        layer.evaluate({"x": torch.ones(6, 8)}, BATCH, BatchPosition(step=step), tally)
        losses.append(tally.report().loss)
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(loss_in_step(0, noise=0.0), rel=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Predictions, and a layer's own embeddings


@pytest.mark.parametrize("length", [4, 11])
def test_layer_scores_every_class_by_the_dot_product_without_noise(length: int) -> None:
    """Equation 1."""
    h, dictionary = features_and_dictionary(length=length)
    rule = rule_of(layer_of())
    scores = rule.scores(layer_of(), outputs_of(layer_of(), h), context_of(dictionary, noise_seed=36))
    assert scores is not None
    pooled = F.adaptive_avg_pool1d(dictionary.double(), 4).tolist()
    expected = torch.tensor([[dot(row, t) for t in pooled] for row in h.tolist()])
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)


def test_layer_predicts_the_class_of_the_largest_dot_product() -> None:
    """Equation 1: not the nearest embedding, nor the one of the likest direction."""
    dictionary = torch.tensor([[1.0, 0.0], [3.0, 3.0], [0.0, 1.0]])
    scores = rule_of(layer_of(2)).scores(
        layer_of(2), outputs_of(layer_of(2), torch.tensor([[2.0, 0.1], [0.0, 1.0]])), context_of(dictionary)
    )
    assert scores is not None
    assert scores.argmax(dim=1).tolist() == [1, 1]


def test_layer_of_the_cosine_variant_predicts_the_likest_direction() -> None:
    dictionary = torch.tensor([[1.0, 0.0], [3.0, 3.0], [0.0, 1.0]])
    rule = rule_of(layer_of(2), similarity="cosine")
    scores = rule.scores(
        layer_of(2), outputs_of(layer_of(2), torch.tensor([[2.0, 0.1], [0.0, 1.0]]), rule), context_of(dictionary)
    )
    assert scores is not None
    assert scores.argmax(dim=1).tolist() == [0, 2]


def test_layer_with_embeddings_of_its_own_has_them_as_long_as_its_features() -> None:
    own = rule_of(layer_of(12, groups=3), embedding=EmbeddingSettings(embedding_mode="per-layer"))
    assert {name: tuple(value.shape) for name, value in own.named_parameters()} == {"embeddings": (NUM_CLASSES, 4)}


@pytest.mark.parametrize("mode", ["static", "last", "shared-mean", "shared-sum"])
def test_layer_that_shares_a_dictionary_has_no_parameters_beside_the_nets(mode: Any) -> None:
    assert not list(rule_of(layer_of(), embedding=EmbeddingSettings(embedding_mode=mode)).parameters())


def test_layers_own_embeddings_take_the_dictionarys_place() -> None:
    h, dictionary = features_and_dictionary()
    own = rule_of(layer_of(), dictionary_weight=1, embedding=EmbeddingSettings(embedding_mode="per-layer"))
    assert own.embeddings is not None
    with torch.no_grad():
        own.embeddings.copy_(dictionary)
    shared = rule_of(layer_of(), dictionary_weight=1)
    for noise_seed in (None, 37):
        mine = own.loss(layer_of(), outputs_of(layer_of(), h), context_of(None, noise_seed=noise_seed))
        assert torch.equal(
            mine, shared.loss(layer_of(), outputs_of(layer_of(), h), context_of(dictionary, noise_seed=noise_seed))
        )
    (gradient,) = torch.autograd.grad(mine, own.embeddings)
    assert gradient.abs().sum() > 0


# ---------------------------------------------------------------------------------------------------------------------
# Bad values


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"temperature": 0.0}, "`temperature` 0.0"),
        ({"temperature": math.nan}, "`temperature` nan"),
        ({"batch_weight": -1.0}, "`batch_weight` -1.0"),
        ({"dictionary_weight": math.inf}, "`dictionary_weight` inf"),
        ({"feature_weight": math.nan}, "`feature_weight` nan"),
        ({"embedding_noise": -0.1}, "`embedding_noise` -0.1"),
        ({"batch_weight": 0.0, "feature_weight": 0.0}, "all 0"),
        ({"embedding": EmbeddingSettings(embedding_lag=-1)}, "`embedding_lag` -1"),
    ],
)
def test_bad_setting_is_refused_by_name(bad: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        CflSettings(**bad).check()


def test_papers_settings_are_accepted() -> None:
    CflSettings().check()
    CflSettings(batch_weight=0.0, dictionary_weight=1.0, embedding_noise=0.0).check()
