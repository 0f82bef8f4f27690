"""Fisher's criterion against explicit scatter matrices, scikit-learn, and under maps that must not change it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from pipeline.layers.fisher import FeatureMoments
from tests.support import CPU


def clusters(count: int, features: int, num_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features (N, C) float64 round class centres, correlated; every class is there."""
    random = torch.Generator().manual_seed(seed)
    others = torch.randint(num_classes, (count - num_classes,), generator=random)
    labels = torch.cat([torch.arange(num_classes), others])
    centres = torch.randn(num_classes, features, generator=random, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(features, features, generator=random, dtype=torch.float64))
    mix = turn * (1 + 2 * torch.rand(features, generator=random, dtype=torch.float64))  # well-conditioned, always
    noise = torch.randn(count, features, generator=random, dtype=torch.float64)
    return centres[labels] + noise @ mix, labels


def fisher(features: Tensor, labels: Tensor, num_classes: int | None = None) -> float:
    moments = FeatureMoments(num_classes or int(labels.max()) + 1, features.shape[1], CPU)
    moments.add(features, labels)
    return moments.fisher()


def explicit_fisher(features: Tensor, labels: Tensor) -> float:
    """Sample by sample, as eqs. 19-22 of Aghagolzadeh & Ezoji 2025 are written."""
    size = features.shape[1]
    within, between = torch.zeros(2, size, size, dtype=torch.float64)
    overall = features.mean(dim=0)
    for label in labels.unique():
        members = features[labels == label]
        mean = members.mean(dim=0)
        for member in members:
            within += torch.outer(member - mean, member - mean)
        between += len(members) * torch.outer(mean - overall, mean - overall)
    return torch.trace(torch.linalg.solve(within, between)).item()


@pytest.mark.parametrize(("count", "size", "num_classes"), [(60, 1, 2), (60, 5, 2), (200, 6, 10), (80, 8, 3)])
def test_fisher_equals_explicit_scatter_matrices(count: int, size: int, num_classes: int) -> None:
    features, labels = clusters(count, size, num_classes)
    assert fisher(features, labels) == pytest.approx(explicit_fisher(features, labels), rel=1e-9)


def test_fisher_by_hand() -> None:
    """Classes {0, 2} and {5, 7}: S_W = 2 + 2, S_B = 2·2.5² + 2·2.5²."""
    features = torch.tensor([[0.0], [2.0], [5.0], [7.0]])
    assert fisher(features, torch.tensor([0, 0, 1, 1])) == pytest.approx(25 / 4)


@pytest.mark.parametrize(("size", "num_classes"), [(5, 2), (6, 4), (4, 8)])
def test_fisher_is_the_between_class_spread_in_the_discriminant_space_of_scikit_learn(
    size: int, num_classes: int
) -> None:
    """Its eigen solver solves S_B v = λ S_W v and scales every v to v'S_W v = 1 (both scatters per sample). So in its
    space the prior-weighted squared distances of the class means from the overall mean add up to Σ λ, and that is
    trace(S_W⁻¹ S_B).
    """
    features, labels = clusters(300, size, num_classes)
    lda = LinearDiscriminantAnalysis(solver="eigen").fit(features.numpy(), labels.numpy())
    means = torch.from_numpy(lda.transform(lda.means_))
    priors = torch.from_numpy(lda.priors_)
    spread = (priors[:, None] * (means - priors @ means) ** 2).sum()
    assert fisher(features, labels) == pytest.approx(spread.item(), rel=1e-8)


def test_shares_of_variance_of_scikit_learn_are_eigenvalues_over_fisher() -> None:
    features, labels = clusters(300, 6, 4)
    lda = LinearDiscriminantAnalysis(solver="eigen").fit(features.numpy(), labels.numpy())
    projected = torch.from_numpy(lda.transform(features.numpy()))
    # Alone, each discriminant direction has its own eigenvalue as its Fisher criterion.
    alone = [fisher(projected[:, i : i + 1], labels) for i in range(3)]
    shares = lda.explained_variance_ratio_
    assert [value / fisher(features, labels) for value in alone] == pytest.approx(shares.tolist(), rel=1e-7)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 6))
def test_invertible_linear_maps_change_nothing(seed: int, size: int) -> None:
    features, labels = clusters(60, size, 3, seed)
    random = torch.Generator().manual_seed(seed + 1)
    left, _ = torch.linalg.qr(torch.randn(size, size, generator=random, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(size, size, generator=random, dtype=torch.float64))
    stretch = torch.rand(size, generator=random, dtype=torch.float64) * 9 + 1  # condition number at most 10
    moved = features @ (left * stretch) @ right + 3
    assert fisher(moved, labels) == pytest.approx(fisher(features, labels), rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), cuts=st.lists(st.integers(1, 49), max_size=5, unique=True).map(sorted))
def test_splitting_into_batches_changes_nothing(seed: int, cuts: list[int]) -> None:
    features, labels = clusters(50, 4, 3, seed)
    moments = FeatureMoments(3, 4, CPU)
    for part in torch.arange(50).tensor_split(cuts):
        moments.add(features[part], labels[part])
    assert moments.fisher() == pytest.approx(fisher(features, labels), rel=1e-9)


def test_order_of_samples_changes_nothing() -> None:
    features, labels = clusters(50, 4, 3)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    assert fisher(features[order], labels[order]) == pytest.approx(fisher(features, labels), rel=1e-10)


def test_features_far_from_zero_lose_nothing() -> None:
    features, labels = clusters(200, 4, 3)
    assert fisher(features + 1000, labels) == pytest.approx(fisher(features, labels), rel=1e-6)


def test_float32_features_are_summed_in_float64() -> None:
    features, labels = clusters(200, 4, 3)
    rounded = features.float()
    assert fisher(rounded, labels) == pytest.approx(explicit_fisher(rounded.double(), labels), rel=1e-9)


def test_repeating_a_feature_makes_the_scatter_singular_and_changes_nothing() -> None:
    features, labels = clusters(80, 3, 3)
    repeated = torch.cat([features, features[:, :1]], dim=1)
    assert fisher(repeated, labels) == pytest.approx(fisher(features, labels), rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, 100.0])
def test_dead_feature_changes_nothing(value: float) -> None:
    features, labels = clusters(80, 3, 3)
    with_dead = torch.cat([features, torch.full((80, 1), value, dtype=torch.float64)], dim=1)
    assert fisher(with_dead, labels) == pytest.approx(fisher(features, labels), rel=1e-6)


def test_fewer_samples_than_features_give_a_finite_number() -> None:
    features, labels = clusters(6, 20, 3)
    assert 0 <= fisher(features, labels) < 1e9


def test_direction_without_spread_inside_the_classes_counts_nothing() -> None:
    features, labels = clusters(80, 3, 2)
    with_perfect = torch.cat([features, labels[:, None].double()], dim=1)
    assert torch.isfinite(torch.tensor(fisher(with_perfect, labels)))
    assert fisher(labels[:, None].double(), labels) == 0


def test_absent_classes_change_nothing() -> None:
    features, labels = clusters(60, 4, 3)
    assert fisher(features, labels * 2 + 1, num_classes=9) == pytest.approx(fisher(features, labels), rel=1e-9)


def test_single_class_has_no_spread_between_classes() -> None:
    features, _ = clusters(30, 4, 2)
    assert fisher(features, torch.zeros(30, dtype=torch.int64)) == pytest.approx(0, abs=1e-9)


def test_nothing_seen_is_0() -> None:
    assert FeatureMoments(3, 4, CPU).fisher() == 0


def test_farther_classes_are_worth_more() -> None:
    features, labels = clusters(80, 3, 2)
    apart = features + 5 * labels[:, None]
    assert fisher(apart, labels) > fisher(features, labels)
