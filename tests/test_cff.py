"""The loss of Contrastive Forward-Forward against a double loop, its clamp, its symmetry, the margins' schedules."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.errors import UserError
from pipeline.methods import BatchPosition, CffSettings, ModelInfo, StepContext
from pipeline.methods.cff import CffRule, Schedule, margin
from pipeline.methods.contrastive import marginal_contrastive_loss
from pipeline.nets import Layer, MlpSettings
from tests.support import outputs_of

SHAPE = (1, 2, 2)


def double_loop(z: Tensor, labels: Tensor, temperature: float, margin: float) -> float:
    """Aghagolzadeh & Ezoji 2025, eqs. 3 and 15, read aloud: every anchor, every positive, in Python floats."""
    rows, classes = z.double().tolist(), labels.tolist()
    count, total = len(rows), 0.0
    for i in range(count):
        logit = {}
        for j in range(count):
            if j != i:
                s = sum(a * b for a, b in zip(rows[i], rows[j], strict=True))
                if classes[i] == classes[j] and margin:
                    s = min(s + margin, 1.0)
                logit[j] = s / temperature
        positives = [j for j in logit if classes[j] == classes[i]]
        if positives:
            top = max(logit.values())
            log_denominator = top + math.log(math.fsum(math.exp(v - top) for v in logit.values()))
            total += -math.fsum(logit[p] - log_denominator for p in positives) / len(positives)
    return total / count


def rule_of(settings: CffSettings, layer: Layer, index: int = 0, num_layers: int = 4) -> CffRule:
    return settings.build(index, layer, ModelInfo(num_layers=num_layers, num_classes=5))


def loss_of(rule: CffRule, layer: Layer, features: Tensor, labels: Tensor) -> Tensor:
    return rule.loss(layer, outputs_of(layer, features), StepContext(labels=labels, where=BatchPosition(training=True)))


def unit_rows(count: int, dim: int, seed: int, spread: float = 1.0) -> Tensor:
    """Unit-length rows (count, dim) float64; a small spread gathers them round one direction."""
    random = torch.Generator().manual_seed(seed)
    centre = F.normalize(torch.ones(dim, dtype=torch.float64), dim=0)
    return F.normalize(centre + spread * torch.randn(count, dim, generator=random, dtype=torch.float64), dim=1)


def some_labels(count: int, num_classes: int, seed: int) -> Tensor:
    return torch.randint(num_classes, (count,), generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------------------------
# The loss


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.4, 1.0, 2.0])
@pytest.mark.parametrize("temperature", [0.05, 0.15, 1.0])
@pytest.mark.parametrize("views", [1, 2])
def test_loss_equals_a_double_loop_in_float64(margin: float, temperature: float, views: int) -> None:
    labels = some_labels(9, 4, seed=1).repeat(views)
    for spread in (1.0, 0.3):  # scattered rows, and rows so close that pairs are clipped
        z = unit_rows(len(labels), 5, seed=2, spread=spread)
        loss = marginal_contrastive_loss(z, labels, temperature=temperature, margin=margin)
        assert float(loss) == pytest.approx(double_loop(z, labels, temperature, margin), rel=1e-12, abs=1e-12)


def test_loss_equals_the_double_loop_where_every_positive_pair_is_clipped() -> None:
    z, labels = unit_rows(8, 4, seed=3, spread=0.05), torch.tensor([0, 0, 0, 1, 1, 1, 2, 3])
    assert (z @ z.T + 0.4 > 1).all()
    loss = marginal_contrastive_loss(z, labels, temperature=0.15, margin=0.4)
    assert float(loss) == pytest.approx(double_loop(z, labels, 0.15, 0.4), rel=1e-12)


def test_two_views_of_the_rule_are_positives_of_each_other() -> None:
    """The rule normalises, repeats the labels view-major and works in float32."""
    layer = MlpSettings(width=6, depth=1).build(0, SHAPE)
    features, labels = torch.randn(10, 6, generator=torch.Generator().manual_seed(4)), torch.arange(5)
    rule = rule_of(CffSettings(views=2, margin_first=0.3), layer)
    z = F.normalize(features.double(), dim=1)
    expected = double_loop(z, torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3, 4]), 0.15, 0.3)
    assert loss_of(rule, layer, features, labels).item() == pytest.approx(expected, rel=1e-5)


def test_rule_computes_its_loss_in_float32_whatever_the_layer_gives() -> None:
    layer = MlpSettings(width=6, depth=1).build(0, SHAPE)
    features = torch.randn(8, 6, generator=torch.Generator().manual_seed(4)).bfloat16()
    labels = torch.tensor([0, 1, 0, 1])
    rule = rule_of(CffSettings(), layer)
    assert torch.equal(loss_of(rule, layer, features, labels), loss_of(rule, layer, features.float(), labels))
    assert loss_of(rule, layer, features, labels).dtype == torch.float32


def test_loss_ignores_the_length_of_features() -> None:
    layer = MlpSettings(width=6, depth=1).build(0, SHAPE)
    features, labels = torch.randn(6, 6, generator=torch.Generator().manual_seed(5)), torch.tensor([0, 0, 1])
    rule = rule_of(CffSettings(), layer)
    # By a power of two the scaled features normalise to the very same bits.
    assert torch.equal(loss_of(rule, layer, features, labels), loss_of(rule, layer, features * 8, labels))


def test_margin_0_is_the_plain_supervised_contrastive_loss() -> None:
    z, labels = unit_rows(12, 6, seed=6), some_labels(12, 3, seed=7)
    others = ~torch.eye(12, dtype=torch.bool)
    exponentials = torch.exp(z @ z.T / 0.15) * others
    positive = (labels[:, None] == labels) & others
    log_share = torch.log(exponentials / exponentials.sum(dim=1, keepdim=True))
    expected = torch.stack([-log_share[i, positive[i]].mean() for i in range(12)]).mean()
    loss = marginal_contrastive_loss(z, labels, temperature=0.15, margin=0.0)
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)


def test_anchor_without_positive_adds_nothing_but_counts_in_the_mean() -> None:
    z = unit_rows(5, 4, seed=8)
    labels = torch.tensor([0, 0, 1, 2, 3])  # rows 2, 3, 4 are alone in their classes
    similarity = (z @ z.T).tolist()
    of_pairs = 0.0
    for anchor, positive in ((0, 1), (1, 0)):
        denominator = sum(math.exp(similarity[anchor][j] / 0.15) for j in range(5) if j != anchor)
        of_pairs -= math.log(math.exp(similarity[anchor][positive] / 0.15) / denominator)
    loss = marginal_contrastive_loss(z, labels, temperature=0.15, margin=0.0)
    assert float(loss) == pytest.approx(of_pairs / 5, rel=1e-12)


@pytest.mark.parametrize("margin", [0.0, 0.4])
def test_all_rows_of_different_classes_have_no_loss_and_no_gradient(margin: float) -> None:
    z = unit_rows(6, 4, seed=9).requires_grad_()
    loss = marginal_contrastive_loss(z, torch.arange(6), temperature=0.15, margin=margin)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(z))


@pytest.mark.parametrize("margin", [0.0, 0.4])
def test_all_rows_of_one_class_equal_the_double_loop(margin: float) -> None:
    z, labels = unit_rows(6, 4, seed=10), torch.zeros(6, dtype=torch.int64)
    loss = marginal_contrastive_loss(z, labels, temperature=0.15, margin=margin)
    assert float(loss) == pytest.approx(double_loop(z, labels, 0.15, margin), rel=1e-12)


@pytest.mark.parametrize("margin", [0.0, 0.4])
def test_single_row_has_loss_0_and_a_finite_gradient(margin: float) -> None:
    """The last validation batch may hold one image; the whole row of its similarities is masked then."""
    z = unit_rows(1, 4, seed=11).requires_grad_()
    loss = marginal_contrastive_loss(z, torch.tensor([3]), temperature=0.15, margin=margin)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(z))


def test_identical_rows_give_a_finite_loss_and_gradient() -> None:
    z = unit_rows(1, 4, seed=12).repeat(6, 1).requires_grad_()
    loss = marginal_contrastive_loss(z, torch.tensor([0, 0, 0, 1, 1, 1]), temperature=0.15, margin=0.4)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.item() == pytest.approx(math.log(5))  # every other row is as likely as any
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
def test_extreme_temperatures_neither_overflow_nor_vanish(temperature: float) -> None:
    z, labels = unit_rows(8, 4, seed=13).float().requires_grad_(), some_labels(8, 2, seed=14)
    loss = marginal_contrastive_loss(z, labels, temperature=temperature, margin=0.4)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.item() == pytest.approx(double_loop(z.detach(), labels, temperature, 0.4), rel=1e-3)
    assert torch.isfinite(gradient).all()


# ---------------------------------------------------------------------------------------------------------------------
# Its gradient


@pytest.mark.parametrize(("margin", "spread"), [(0.0, 1.0), (0.4, 1.0), (0.4, 0.3)])
def test_gradient_passes_gradcheck_away_from_the_clamp(margin: float, spread: float) -> None:
    z, labels = unit_rows(8, 4, seed=15, spread=spread), torch.tensor([0, 0, 1, 1, 1, 2, 2, 3])
    positive = (labels[:, None] == labels) & ~torch.eye(8, dtype=torch.bool)
    shifted = (z @ z.T + margin)[positive]
    assert ((shifted - 1).abs() > 1e-4).all(), "no pair so near the clamp that a finite difference would cross it"
    if margin:
        assert (shifted > 1).any(), "some pairs are clipped"
    assert torch.autograd.gradcheck(
        lambda rows: marginal_contrastive_loss(rows, labels, temperature=0.15, margin=margin), z.requires_grad_()
    )


def clipped_pair() -> tuple[Tensor, Tensor]:
    """Two rows of one class at cosine 0.8 in the plane of the first two axes; one of another class off that plane."""
    z = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return z, torch.tensor([0, 0, 1])


def test_clipped_pair_gets_no_gradient_through_its_own_similarity() -> None:
    z, labels = clipped_pair()
    z.requires_grad_()
    loss = marginal_contrastive_loss(z, labels, temperature=0.15, margin=0.4)  # 0.8 + 0.4 > 1
    (gradient,) = torch.autograd.grad(loss, z)
    # What pulls the pair together lies in its plane (the first two axes); what pushes the other row away does not.
    assert torch.equal(gradient[:2, :2], torch.zeros(2, 2, dtype=torch.float64))
    assert (gradient[:2, 2] > 0).all()


def test_pair_that_the_margin_does_not_clip_is_pulled_together() -> None:
    z, labels = clipped_pair()
    z.requires_grad_()
    loss = marginal_contrastive_loss(z, labels, temperature=0.15, margin=0.1)  # 0.8 + 0.1 < 1
    (gradient,) = torch.autograd.grad(loss, z)
    assert (gradient[0] @ z[1] < 0).item()
    assert (gradient[1] @ z[0] < 0).item()


def test_margin_leaves_pairs_of_other_classes_alone() -> None:
    """With each positive pair clipped to 1, moving the margin further changes nothing: negatives carry none of it."""
    z, labels = clipped_pair()
    losses = {marginal_contrastive_loss(z, labels, temperature=0.15, margin=m).item() for m in (0.3, 0.4, 1.0, 2.0)}
    assert len(losses) == 1
    assert losses.pop() == pytest.approx(2 / 3 * math.log1p(math.exp(-1 / 0.15)), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(2, 14),
    dim=st.integers(2, 6),
    num_classes=st.integers(1, 5),
    margin=st.sampled_from([0.0, 0.1, 0.4]),
    seed=st.integers(0, 2**31),
)
def test_permuting_the_batch_permutes_the_gradient_and_keeps_the_loss(
    rows: int, dim: int, num_classes: int, margin: float, seed: int
) -> None:
    z, labels = unit_rows(rows, dim, seed), some_labels(rows, num_classes, seed + 1)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed + 2))

    def loss_and_gradient(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        z = z.clone().requires_grad_()
        loss = marginal_contrastive_loss(z, labels, temperature=0.15, margin=margin)
        return loss.detach(), torch.autograd.grad(loss, z)[0]

    loss, gradient = loss_and_gradient(z, labels)
    permuted_loss, permuted_gradient = loss_and_gradient(z[order], labels[order])
    torch.testing.assert_close(permuted_loss, loss, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(permuted_gradient, gradient[order], rtol=1e-9, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(2, 10), margin=st.floats(0, 2), temperature=st.floats(0.02, 5), seed=st.integers(0, 2**31))
def test_loss_equals_the_double_loop_for_any_batch(rows: int, margin: float, temperature: float, seed: int) -> None:
    z, labels = unit_rows(rows, 3, seed), some_labels(rows, 3, seed)
    loss = marginal_contrastive_loss(z, labels, temperature=temperature, margin=margin)
    assert float(loss) == pytest.approx(double_loop(z, labels, temperature, margin), rel=1e-11, abs=1e-11)


# ---------------------------------------------------------------------------------------------------------------------
# The margins


def formula(schedule: Schedule, x: float, first: float, last: float, k: float) -> float:
    """The schedules of the program of Aghagolzadeh & Ezoji 2025, with m0 = first and 0.1 = last."""
    return {
        "linear": first - (first - last) * x,
        "parabolic": last + (first - last) * abs(x - 1) ** (2 * k),
        "cosine": last + (first - last) * (1 + math.cos(math.pi * x**k)) / 2,
        "exponential": first * (last / first) ** (x**k),
    }[schedule]


SCHEDULES: list[Schedule] = ["linear", "parabolic", "cosine", "exponential"]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize(("first", "last"), [(0.4, 0.1), (0.1, 0.4), (0.3, 0.3)])
def test_margins_follow_their_schedules_formula(schedule: Schedule, exponent: float, first: float, last: float) -> None:
    chosen = CffSettings(margin_first=first, margin_last=last, margin_schedule=schedule, margin_exponent=exponent)
    margins = [margin(chosen, layer, 6) for layer in range(6)]
    assert margins == pytest.approx([formula(schedule, x / 5, first, last, exponent) for x in range(6)], rel=1e-14)


def test_papers_linear_margins_by_hand() -> None:
    assert [margin(CffSettings(), layer, 4) for layer in range(4)] == pytest.approx([0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize(
    ("schedule", "by_hand"),
    [
        ("parabolic", [0.4, 0.1 + 0.3 * 0.25, 0.1]),
        ("cosine", [0.4, 0.25, 0.1]),
        ("exponential", [0.4, 0.2, 0.1]),
    ],
)
def test_margins_of_three_layers_by_hand(schedule: Schedule, by_hand: list[float]) -> None:
    chosen = CffSettings(margin_schedule=schedule)
    assert [margin(chosen, layer, 3) for layer in range(3)] == pytest.approx(by_hand)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("exponent", [0.5, 2.0])
def test_every_schedule_goes_from_the_first_margin_to_the_last(schedule: Schedule, exponent: float) -> None:
    chosen = CffSettings(margin_schedule=schedule, margin_exponent=exponent)
    margins = [margin(chosen, layer, 7) for layer in range(7)]
    assert (margins[0], margins[-1]) == (pytest.approx(0.4), pytest.approx(0.1))
    assert margins == sorted(margins, reverse=True)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_single_layer_has_the_first_margin(schedule: Schedule) -> None:
    assert margin(CffSettings(margin_schedule=schedule), 0, 1) == pytest.approx(0.4)


def test_layers_rule_has_its_layers_margin() -> None:
    chosen = CffSettings(margin_first=0.4, margin_last=0.1)
    layer = MlpSettings(width=4, depth=1).build(0, SHAPE)
    features, labels = unit_rows(6, 4, seed=16), some_labels(6, 2, seed=17)
    for index, expected in enumerate([0.4, 0.25, 0.1]):
        loss = loss_of(rule_of(chosen, layer, index, 3), layer, features, labels)
        assert loss.item() == pytest.approx(double_loop(features, labels, 0.15, expected), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Bad values


@pytest.mark.parametrize(
    ("bad", "named", "allowed"),
    [
        ({"temperature": 0.0}, "`temperature` 0.0", "above 0"),
        ({"temperature": -0.15}, "`temperature` -0.15", "above 0"),
        ({"temperature": math.nan}, "`temperature` nan", "above 0"),
        ({"margin_first": -0.1}, "`margin_first` -0.1", "between 0 and 2"),
        ({"margin_first": math.nan}, "`margin_first` nan", "between 0 and 2"),
        ({"margin_last": 2.5}, "`margin_last` 2.5", "between 0 and 2"),
        ({"margin_exponent": 0.0}, "`margin_exponent` 0.0", "above 0"),
        ({"margin_exponent": -1.0}, "`margin_exponent` -1.0", "above 0"),
        ({"margin_schedule": "exponential", "margin_last": 0.0}, "`margin_schedule` exponential", "above 0"),
    ],
)
def test_bad_setting_is_refused_by_name_with_what_is_allowed(
    bad: dict[str, float | str], named: str, allowed: str
) -> None:
    with pytest.raises(UserError) as refusal:
        CffSettings(**bad).check()  # type: ignore[arg-type]
    assert named in str(refusal.value)
    assert allowed in str(refusal.value)


def test_papers_settings_and_plain_cff_are_accepted() -> None:
    CffSettings().check()
    CffSettings(margin_first=0.0, margin_last=0.0).check()
    CffSettings(margin_first=2.0, margin_last=2.0, margin_schedule="exponential").check()
