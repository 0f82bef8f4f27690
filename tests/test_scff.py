"""Self-contrastive Forward-Forward: its loss against double loops, its layers against plain formulas, its settings."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.config import checks
from pipeline.config.settings import ReadoutSettings, Settings
from pipeline.errors import UserError
from pipeline.layers.joined import JOINED
from pipeline.layers.layer import LocalLayer
from pipeline.methods import Activations, BatchPosition, ModelInfo, ScffSettings, StepContext
from pipeline.methods.scff import NEGATIVE, ScffRule, goodness
from pipeline.nets import MlpSettings, PairedConvSettings, PairedMlpSettings
from pipeline.nets.paired import PairedConv, PairedLayer, PairedLinear, standardised, triangle
from tests.support import CPU, tiny_spec

SHAPE = (1, 8, 8)
MODEL = ModelInfo(num_layers=3, num_classes=3)
MLP = PairedMlpSettings(width=5, depth=3, pairing=("anew", "passed", "anew"))
CONV = PairedConvSettings(channels=(3, 4), kernel=(5, 3), pairing=("anew", "passed"))
METHOD = ScffSettings(
    positive_threshold=(2.0, 1.0, 3.0), negative_threshold=(0.5, 0.2, 0.7), goodness_penalty=(0.3, 0.0, 0.1)
)
"""Of three layers."""
LABELS = torch.zeros(5, dtype=torch.int64)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def context(seed: int | None = 7, *, for_readouts: bool = False) -> StepContext:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    where = BatchPosition(training=seed is not None, for_readouts=for_readouts)
    return StepContext(labels=LABELS, where=where, generator=generator)


def layer_of(net: PairedMlpSettings | PairedConvSettings, index: int) -> tuple[PairedLayer, ScffRule]:
    torch.manual_seed(index)
    layer = net.build(index, SHAPE)
    return layer, METHOD.build(index, layer, MODEL)


# ---------------------------------------------------------------------------------------------------------------------
# The loss


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def double_loop(positive: Tensor, negative: Tensor, index: int) -> float:
    """Eqs. 3 and 4 with the penalty read aloud, from goodness (N, T), in Python floats."""
    above, below, penalty = (
        getattr(METHOD, name)[index] for name in ("positive_threshold", "negative_threshold", "goodness_penalty")
    )
    (count, places), total, norms = positive.shape, 0.0, 0.0
    for n in range(count):
        for t in range(places):
            total += softplus(above - float(positive[n, t])) + softplus(float(negative[n, t]) - below)
        norms += math.sqrt(sum(float(positive[n, t]) ** 2 for t in range(places)))
    return total / (count * places) + penalty * norms / count


def mean_square(weighed: Tensor) -> Tensor:
    """Goodness (N, T) of W·x + W·x′ + 2b (N, C, …) by loops over samples, places and channels."""
    maps = weighed.flatten(2) if weighed.ndim > 2 else weighed[..., None]
    count, channels, places = maps.shape
    rows = [
        [sum(max(float(maps[n, c, t]), 0.0) ** 2 for c in range(channels)) / channels for t in range(places)]
        for n in range(count)
    ]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("index", range(3))
def test_the_loss_equals_a_double_loop_in_float64(index: int) -> None:
    positive, negative = (3 * numbers(5, 4, seed=seed).double().square() for seed in (0, 1))
    got = layer_of(MLP, index)[1].contrast(positive.view(5, 2, 2), negative.view(5, 2, 2))
    assert got.item() == pytest.approx(double_loop(positive, negative, index), rel=1e-12)


def test_the_losss_gradient_is_that_of_finite_differences() -> None:
    rule = layer_of(MLP, 0)[1]
    inputs = [(1 + numbers(5, 4, seed=seed).double().square()).requires_grad_() for seed in (0, 1)]
    assert torch.autograd.gradcheck(rule.contrast, inputs)


@pytest.mark.parametrize("net", [MLP, CONV], ids=["mlp", "conv"])
def test_a_layer_that_pairs_contrasts_samples_with_themselves_and_with_one_so_many_places_on(net: Any) -> None:
    layer, rule = layer_of(net, 0)
    images = numbers(5, *SHAPE)
    outputs = rule(layer, {"x": images}, context(7))
    shift = 1 + 7 % 4  # of a generator seeded with 7, and five samples
    with torch.no_grad():
        weighed = layer.weigh(images)
        partners = torch.stack([weighed[(n + shift) % 5] for n in range(5)])
    expected = double_loop(mean_square(weighed + weighed), mean_square(weighed + partners), 0)
    assert rule.loss(layer, outputs, context(7)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("net", [MLP, CONV], ids=["mlp", "conv"])
def test_of_two_views_a_pair_has_one_each_of_the_same_sample_or_of_another(net: Any) -> None:
    layer, _ = layer_of(net, 0)
    rule = replace(METHOD, views=2).build(0, layer, MODEL)
    first, second = numbers(5, *SHAPE), numbers(5, *SHAPE, seed=1)
    outputs = rule(layer, rule.make_inputs(torch.cat([first, second]), context(7)), context(7))
    with torch.no_grad():
        weighed, partners = layer.weigh(first), layer.weigh(second)
        others = torch.stack([partners[(n + 1 + 7 % 4) % 5] for n in range(5)])
    expected = double_loop(mean_square(weighed + partners), mean_square(weighed + others), 0)
    assert rule.loss(layer, outputs, context(7)).item() == pytest.approx(expected, rel=1e-5)
    sent = rule.outputs_to_send(layer, outputs, context(7))
    assert torch.equal(sent["x"], layer.passed_on(weighed + partners))
    assert torch.equal(sent[NEGATIVE], layer.passed_on(weighed + others))


def test_a_single_view_is_paired_with_itself() -> None:
    """As readouts and the evaluation of plain images show it, of a method that trains on two."""
    layer, one = layer_of(MLP, 0)
    two = replace(METHOD, views=2).build(0, layer, MODEL)
    images = numbers(5, *SHAPE)
    inputs = [rule.make_inputs(images, context(None)) for rule in (one, two)]
    assert [list(given) for given in inputs] == [["x"], ["x"]]
    assert torch.equal(two(layer, inputs[1], context(None))["x"], layer(images))


def test_a_layer_that_goes_on_with_pairs_takes_them_as_they_come() -> None:
    layer, rule = layer_of(CONV, 1)
    positive, negative = numbers(5, 3, 4, 4), numbers(5, 3, 4, 4, seed=1)
    outputs = rule(layer, {"x": positive, NEGATIVE: negative}, context())
    assert isinstance(layer, PairedConv)
    with torch.no_grad():
        expected = double_loop(mean_square(layer.conv(positive)), mean_square(layer.conv(negative)), 1)
    assert rule.loss(layer, outputs, context()).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("net", [MLP, CONV], ids=["mlp", "conv"])
def test_it_standardises_them_where_all_layers_do(net: Any) -> None:
    plain, _ = layer_of(net, 1)
    layer, _ = layer_of(replace(net, standardise="all"), 1)  # with the same weights
    pairs = numbers(5, *((5,) if net is MLP else (3, 4, 4)))
    torch.testing.assert_close(layer.weigh(pairs), plain.weigh(standardised(pairs)))
    assert not torch.allclose(layer.weigh(pairs), plain.weigh(pairs))


def test_both_halves_of_a_pair_share_their_weights() -> None:
    """As one linear map on the two samples side by side."""
    layer, _ = layer_of(PairedMlpSettings(width=5, depth=1), 0)
    assert isinstance(layer, PairedLinear)
    first, second = standardised(numbers(6, 64)), standardised(numbers(6, 64, seed=1))
    wide = torch.cat([layer.linear.weight, layer.linear.weight], dim=1)  # (C, 2·64)
    expected = torch.cat([first, second], dim=1) @ wide.T + 2 * layer.linear.bias
    torch.testing.assert_close(layer.weigh(first) + layer.weigh(second), expected)


def test_the_partner_is_another_sample_keyed_by_layer_and_step() -> None:
    spec = tiny_spec(net=MLP, method=METHOD)
    first = LocalLayer(spec, 0, CPU)
    images = standardised(numbers(6, *SHAPE))

    def shift(step: int, layer: LocalLayer = first) -> int:
        """From what a frozen layer sends of pairs while the next one learns."""
        sent, _ = layer.take_part({"x": images}, LABELS, BatchPosition(training=True, step=step, phase=range(1, 2)))
        net = layer.net
        assert isinstance(net, PairedLayer)
        with torch.no_grad():
            weighed = net.weigh(images)
            tried = [
                torch.equal(sent[NEGATIVE], net.passed_on(net.with_others(weighed, weighed.roll(-r, 0))))
                for r in range(6)
            ]
        assert tried.count(True) == 1
        return tried.index(True)

    shifts = [shift(step) for step in range(60)]
    assert set(shifts) == {1, 2, 3, 4, 5}
    assert shifts == [shift(step, LocalLayer(spec, 0, CPU)) for step in range(60)]
    assert shifts != [shift(step, LocalLayer(tiny_spec(net=MLP, method=METHOD, seed=1), 0, CPU)) for step in range(60)]


def test_a_batch_of_one_image_in_evaluation_is_a_number() -> None:
    layer, rule = layer_of(CONV, 0)
    outputs = rule(layer, {"x": numbers(1, *SHAPE)}, context(None))
    assert torch.isfinite(rule.loss(layer, outputs, context(None)))


# ---------------------------------------------------------------------------------------------------------------------
# What layers are shown and pass on


def test_standardised_samples_have_mean_0_and_deviation_1() -> None:
    x = 3 * numbers(4, 2, 3, 3).double() + 5
    for got, sample in zip(standardised(x), x, strict=True):
        mean = sum(float(value) for value in sample.flatten()) / 18
        deviation = math.sqrt(sum((float(value) - mean) ** 2 for value in sample.flatten()) / 18)
        torch.testing.assert_close(got, (sample - mean) / deviation, rtol=1e-7, atol=1e-7)
    assert not standardised(torch.ones(2, 3, 3)).any(), "a sample without any deviation is nothing"


def test_the_triangle_is_what_a_channel_has_above_the_mean_of_all_in_its_place() -> None:
    x = numbers(2, 3, 2, 2)
    got = triangle(x)
    for n in range(2):
        for row in range(2):
            for column in range(2):
                mean = sum(float(x[n, c, row, column]) for c in range(3)) / 3
                for c in range(3):
                    assert float(got[n, c, row, column]) == pytest.approx(max(0, float(x[n, c, row, column]) - mean))


@pytest.mark.parametrize("net", [MLP, CONV], ids=["mlp", "conv"])
def test_samples_with_others_travel_where_the_next_layer_goes_on_with_them(net: Any) -> None:
    layer, rule = layer_of(net, 0)
    outputs = rule(layer, {"x": numbers(5, *SHAPE)}, context())
    assert rule.outputs_to_send(layer, outputs, context()).keys() == {"x", NEGATIVE}
    assert rule.outputs_to_send(layer, outputs, context(None, for_readouts=True)).keys() == {"x"}
    assert torch.equal(outputs["x"], layer(numbers(5, *SHAPE))), "the net alone pairs samples with themselves"


def test_a_layer_before_one_that_pairs_anew_sends_samples_with_themselves_alone() -> None:
    layer, rule = layer_of(MLP, 1)
    activations: Activations = {"x": numbers(5, 5), NEGATIVE: numbers(5, 5, seed=1)}
    outputs = rule(layer, activations, context())
    assert rule.outputs_to_send(layer, outputs, context()).keys() == {"x"}


def test_goodness_is_summed_in_float32_whatever_the_layers_precision() -> None:
    assert goodness(numbers(2, 3).bfloat16()).dtype == torch.float32


def test_a_readout_sees_feature_maps_halved_once_more_and_standardised() -> None:
    for index, grid in ((0, 4), (1, 2)):
        layer = CONV.build(index, SHAPE)
        x = layer(numbers(2, 1, 8, 8) if index == 0 else numbers(2, 3, 4, 4))
        assert x.shape[2:] == layer.grid == (grid, grid)
        seen = layer.readout_input(x)
        assert seen.shape == (2, layer.readout_width)
        halved = x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean(dim=(3, 5))
        torch.testing.assert_close(seen, standardised(halved).flatten(1))


def test_a_readout_sees_units_standardised() -> None:
    layer, _ = layer_of(MLP, 0)
    x = layer(numbers(3, *SHAPE))
    assert torch.equal(layer.readout_input(x), standardised(x))


# ---------------------------------------------------------------------------------------------------------------------
# Settings of each layer


def test_every_layer_has_rates_and_a_decay_of_its_own() -> None:
    method = ScffSettings(
        layer_lr=(1.0, 0.5, 0.1), layer_weight_decay=(1.0, 2.0, 0.0), lr_gamma=(0.5, 1.0, 0.1), gamma_steps=(3, 1, 2)
    )
    spec = tiny_spec(net=MLP, method=method, lr=1e-2)
    seen = []
    for index in range(3):
        layer = LocalLayer(spec, index, CPU)
        x = numbers(6, *SHAPE) if index == 0 else numbers(6, 5)
        activations = {"x": x} if index != 1 else {"x": x, NEGATIVE: x}
        for step in (0, 5):
            layer.train(activations, LABELS, BatchPosition(training=True, step=90 + step, phase_step=step))
            seen.append(layer.vitals()["learning_rate"])
        assert layer.optimizer.param_groups[0]["weight_decay"] == 0.01 * method.layer_weight_decay[index]
    assert seen == pytest.approx([1e-2, 5e-3, 5e-3, 5e-3, 1e-3, 1e-5])


def test_one_value_stands_for_all_layers() -> None:
    one = ScffSettings(positive_threshold=(7.0,))
    assert {one.build(index, MLP.build(index, SHAPE), MODEL).positive_threshold for index in range(3)} == {7.0}


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (ScffSettings(goodness_penalty=(-1.0,)), "`goodness_penalty` -1: must be numbers of at least 0"),
        (ScffSettings(positive_threshold=(1.0, math.nan)), "`positive_threshold` 1 nan: must be numbers"),
        (ScffSettings(layer_lr=(1.0, -1.0)), "`layer_lr` 1 -1: must be numbers of at least 0"),
        (ScffSettings(lr_gamma=(1.5,)), "`lr_gamma` 1.5: must be numbers above 0 and at most 1"),
        (ScffSettings(gamma_steps=(0,)), "`gamma_steps` 0: must be numbers of at least 1"),
        (ScffSettings(readout_span=-1), "`readout_span` -1"),
    ],
)
def test_a_value_out_of_range_is_named(method: ScffSettings, said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}"):
        method.check()


def test_values_that_do_not_fit_the_number_of_layers_are_refused() -> None:
    with pytest.raises(UserError, match=r"`layer_lr` 1\.0 0\.5: 2 values for a net of 3 layers\. Give one for all"):
        ScffSettings(layer_lr=(1.0, 0.5)).adapt(MLP)
    with pytest.raises(UserError, match="`lr_gamma` without a value: 0 values"):
        ScffSettings(lr_gamma=()).adapt(MLP)
    with pytest.raises(UserError, match="`pairing` anew passed: 2 values for a net of 3 layers"):
        PairedMlpSettings(depth=3, pairing=("anew", "passed")).resolve(SHAPE)


def test_nets_that_cannot_take_pairs_are_refused() -> None:
    with pytest.raises(UserError, match=r"MLP\[500 3\] cannot take pairs"):
        ScffSettings().adapt(MlpSettings())
    with pytest.raises(UserError, match="the first layer has none before it"):
        PairedMlpSettings(pairing=("passed",)).resolve(SHAPE)
    with pytest.raises(UserError, match="`kernel` 4: must be odd"):
        PairedConvSettings(kernel=(4,)).resolve((3, 32, 32))
    with pytest.raises(UserError, match="at least 16"):
        PairedConvSettings().resolve((1, 8, 8))


# ---------------------------------------------------------------------------------------------------------------------
# The readout


def readout_of(**values: Any) -> LocalLayer:
    """The last of three layers, whose readout sees all of them."""
    spec = tiny_spec(net=MLP, method=METHOD)
    readout = replace(spec.settings.readout, readout_layers="last", readout_epochs=10, **values)
    return LocalLayer(replace(spec, settings=replace(spec.settings, readout=readout)), 2, CPU)


def readout_loss(layer: LocalLayer, epoch: int = 0, position: int = 0) -> float:
    """Of an update at an epoch of the readouts, behind the layers' two."""
    where = BatchPosition(epoch=2 + epoch, position=position, for_readouts=True)
    activations = {"x": numbers(6, 5), JOINED: numbers(6, 10, seed=1)}
    _, loss = layer.train_readout(activations, torch.arange(6) % 3, where)
    assert loss is not None
    return loss.item()


def test_a_readouts_rate_halves_at_shares_of_its_epochs() -> None:
    layer = readout_of(readout_milestones=(0.2, 0.35), readout_lr=0.1)
    rates = []
    for epoch in range(5):
        readout_loss(layer, epoch)
        rates.append(layer.readout_training.optimizer.param_groups[0]["lr"])
    assert rates == [0.1, 0.1, 0.05, 0.05, 0.025]


def test_what_a_readout_drops_is_keyed_by_epoch_and_place() -> None:
    whole, dropped = readout_loss(readout_of()), readout_loss(readout_of(readout_dropout=0.5))
    assert whole != dropped
    assert readout_loss(readout_of(readout_dropout=0.5)) == dropped
    assert readout_loss(readout_of(readout_dropout=0.5), position=6) != dropped
    assert readout_loss(readout_of(readout_dropout=0.5), epoch=1) != dropped


def test_a_readouts_weights_decay_as_they_are_told() -> None:
    assert readout_of(readout_weight_decay=0.0).readout_training.optimizer.param_groups[0]["weight_decay"] == 0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"readout_dropout": 1.0}, "`readout_dropout` 1.0"),
        ({"readout_milestones": (0.5, 0.2)}, "`readout_milestones` 0.5 0.2"),
        ({"readout_milestones": (20.0,)}, "`readout_milestones` 20.0"),
        ({"readout_weight_decay": -1.0}, "`readout_weight_decay` -1.0"),
    ],
)
def test_settings_of_readouts_out_of_range_are_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}"):
        checks.check(Settings(readout=ReadoutSettings(**values)))
