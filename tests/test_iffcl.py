"""IFFCL and FFCL: their losses against double loops, what teaches what, how the twins predict."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from launch.presets import PRESETS
from pipeline.errors import NonFiniteLossError
from pipeline.layers.layer import LocalLayer
from pipeline.methods import Activations, BatchPosition, FfclSettings, IffclSettings, ModelInfo, StepContext
from pipeline.methods.contrastive import cosine_embedding_contrast
from pipeline.methods.iffcl import FIRST, SECOND, IffclRule
from pipeline.nets import ConvSettings, MlpSettings, NetConfig, VitSettings
from pipeline.nets.twins import TwinLayer
from pipeline.nets.whole import WholeNet
from tests.support import CPU, tiny_spec

SHAPE, NUM_CLASSES = (1, 8, 8), 3
LABELS = torch.tensor([0, 2, 1, 1, 2, 0])
LEARNING = BatchPosition(training=True)
MLP = MlpSettings(width=16, depth=2)
NETS = pytest.mark.parametrize(
    "net",
    [MLP, VitSettings(dim=8, heads=2, depth=2, patch=2), ConvSettings(channels=(4, 6))],
    ids=["mlp", "vit", "conv"],
)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def context(where: BatchPosition = LEARNING) -> StepContext:
    return StepContext(labels=LABELS, where=where)


def twins_of(net: NetConfig, settings: IffclSettings | None = None) -> list[tuple[TwinLayer, IffclRule]]:
    torch.manual_seed(0)
    settings = settings or IffclSettings()
    twins = settings.adapt(net)
    model = ModelInfo(num_layers=net.num_layers, num_classes=NUM_CLASSES)
    layers = [twins.build(index, SHAPE) for index in range(net.num_layers)]
    return [(layer, settings.build(index, layer, model)) for index, layer in enumerate(layers)]


def through(layers: list[tuple[TwinLayer, IffclRule]], images: Tensor) -> list[Activations]:
    """What every layer puts out."""
    outputs, activations = [], layers[0][1].make_inputs(images, context())
    for layer, rule in layers:
        outputs.append(rule(layer, activations, context()))
        activations = rule.outputs_to_send(layer, outputs[-1], context())
    return outputs


def cosine(a: list[float], b: list[float]) -> float:
    """Of two vectors, read aloud in Python floats."""
    product = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return product / math.sqrt(math.fsum(x * x for x in a)) / math.sqrt(math.fsum(y * y for y in b))


# ---------------------------------------------------------------------------------------------------------------------
# IFFCL


@NETS
def test_a_hidden_layers_loss_is_one_minus_the_cosine_of_the_twins_features(net: NetConfig) -> None:
    layers = twins_of(net)
    layer, rule = layers[0]
    outputs = {name: tensor.double() for name, tensor in through(layers, numbers(6, *SHAPE))[0].items()}
    first, second = (layer.pool(outputs[name]).tolist() for name in (FIRST, SECOND))
    expected = sum(1 - cosine(a, b) for a, b in zip(first, second, strict=True)) / 6
    assert rule.loss(layer, outputs, context()).item() == pytest.approx(expected, rel=1e-5)


def test_the_last_layer_adds_the_binary_cross_entropy_of_both_classifiers() -> None:
    layers = twins_of(MLP)
    layer, rule = layers[-1]
    outputs = through(layers, numbers(6, *SHAPE))[-1]
    expected = sum(1 - cosine(a, b) for a, b in zip(outputs[FIRST].tolist(), outputs[SECOND].tolist(), strict=True)) / 6
    for name, classifier in zip((FIRST, SECOND), rule.classifiers, strict=True):
        scores = classifier(outputs[name]).double()
        for n, label in enumerate(LABELS.tolist()):
            powers = [math.exp(score) for score in scores[n].tolist()]
            for z, power in enumerate(powers):
                p = power / sum(powers)
                expected -= (math.log(p) if z == label else math.log(1 - p)) / 6 / NUM_CLASSES
    assert rule.loss(layer, outputs, context()).item() == pytest.approx(expected, rel=1e-5)


def test_its_losses_gradients_are_those_of_finite_differences() -> None:
    layer, rule = twins_of(MLP)[0]
    a, b = (numbers(6, 16, seed=seed).double().requires_grad_() for seed in (1, 2))

    def of_float32(x: Tensor, y: Tensor) -> Tensor:
        return rule.loss(layer, {FIRST: x, SECOND: y}, context()).double()

    assert torch.autograd.gradcheck(of_float32, (a, b), eps=1e-3, atol=1e-3)
    seen = numbers(6, 5, seed=3).double()
    weight = numbers(NUM_CLASSES, 5).double().requires_grad_()
    targets = F.one_hot(LABELS, NUM_CLASSES).double()
    assert torch.autograd.gradcheck(lambda w: F.binary_cross_entropy((seen @ w.T).softmax(dim=1), targets), (weight,))


@NETS
def test_twins_begin_with_other_weights_and_see_the_same_image(net: NetConfig) -> None:
    layers = twins_of(net)
    for layer, _ in layers:
        pairs = zip(layer.first.parameters(), layer.second.parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs)
    inputs = layers[0][1].make_inputs(numbers(6, *SHAPE), context())
    assert torch.equal(inputs[FIRST], inputs[SECOND])
    first, second = (through(layers, numbers(6, *SHAPE))[1][name] for name in (FIRST, SECOND))
    assert not torch.equal(first, second)


def test_a_layer_learns_from_its_own_loss_and_the_classifiers_teach_no_layer() -> None:
    """With the twins' features the same, nothing of the last layer's loss is left for the layer."""
    layers = twins_of(MLP)
    layer, rule = layers[-1]
    layer.second.load_state_dict(layer.first.state_dict())
    same = numbers(6, 16).abs()
    rule.loss(layer, rule(layer, {FIRST: same, SECOND: same}, context()), context()).backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() < 1e-6
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in rule.parameters())
    assert all(parameter.grad is None for parameter in layers[0][0].parameters())


def test_the_twin_that_is_asked_for_predicts() -> None:
    found = {}
    names: tuple[Literal["first", "second", "both"], ...] = ("first", "second", "both")
    for name in names:
        layers = twins_of(MLP, IffclSettings(predicts_by=name))
        outputs = through(layers, numbers(6, *SHAPE))
        assert layers[0][1].scores(layers[0][0], outputs[0], context()) is None, "hidden layers do not predict"
        scores = layers[-1][1].scores(layers[-1][0], outputs[-1], context())
        assert scores is not None
        found[name] = scores
    assert torch.equal(found["first"], layers[-1][1].classifiers[0](outputs[-1][FIRST]).softmax(dim=1))
    assert torch.equal(found["second"], layers[-1][1].classifiers[1](outputs[-1][SECOND]).softmax(dim=1))
    torch.testing.assert_close(found["both"], (found["first"] + found["second"]) / 2)


def test_its_figure_is_the_mean_cosine_of_the_twins() -> None:
    layers = twins_of(MLP)
    layer, rule = layers[0]
    outputs = through(layers, numbers(6, *SHAPE))[0]
    figures = rule.figures(layer, outputs, context())
    assert figures.keys() == set(IffclSettings.figures)
    assert figures["twin_similarity"].item() == pytest.approx(1 - rule.loss(layer, outputs, context()).item(), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# FFCL


def double_loop(z: Tensor, labels: list[int], margin: float) -> float:
    """Every pair of the batch, by torch's own loss of two images."""
    sums, counts = {1: 0.0, -1: 0.0}, {1: 0, -1: 0}
    for i in range(len(z)):
        for j in range(len(z)):
            if i != j:
                kind = 1 if labels[i] == labels[j] else -1
                said = F.cosine_embedding_loss(z[i : i + 1], z[j : j + 1], torch.tensor([kind]), margin=margin)
                sums[kind] += said.item()
                counts[kind] += 1
    return sum(sums[kind] / max(1, counts[kind]) for kind in sums) / 2


@pytest.mark.parametrize("margin", [0.0, 0.4])
@pytest.mark.parametrize("labels", [[0, 2, 1, 1, 2, 0], [1, 1, 1, 1, 1, 1], [0, 1, 2, 3, 4, 5]])
def test_ffcls_loss_is_torchs_cosine_embedding_loss_of_every_pair_in_float64(labels: list[int], margin: float) -> None:
    z = F.normalize(numbers(6, 4).double(), dim=1)
    found = cosine_embedding_contrast(z, torch.tensor(labels), margin=margin)
    assert found.item() == pytest.approx(double_loop(z, labels, margin), rel=1e-12)


def test_ffcls_gradient_is_that_of_finite_differences() -> None:
    x = numbers(6, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: cosine_embedding_contrast(F.normalize(x, dim=1), LABELS, margin=0.1), (x,)
    )


def test_a_batch_of_one_class_teaches_and_stays_a_number() -> None:
    spec = tiny_spec(net=MLP, method=FfclSettings())
    layer, labels = LocalLayer(spec, 0, CPU), torch.ones(6, dtype=torch.int64)
    before = layer.net.state_dict()["linear.weight"].clone()
    passed, loss = layer.train(layer.make_inputs(numbers(6, *SHAPE), labels, LEARNING), labels, LEARNING)
    assert torch.isfinite(loss)
    assert torch.isfinite(passed["x"]).all()
    assert not torch.equal(layer.net.state_dict()["linear.weight"], before)


def test_the_global_stage_teaches_every_layer_of_the_net_from_the_last_ones_features() -> None:
    method = FfclSettings(scope="global")
    spec = tiny_spec(net=MLP, method=method)
    assert isinstance(spec.net, WholeNet) and spec.num_layers == 1
    whole = LocalLayer(spec, 0, CPU)
    images = numbers(6, *SHAPE)
    loss = cosine_embedding_contrast(F.normalize(whole.net(images), dim=1), LABELS, margin=0.0)
    loss.backward()
    expected = [parameter.grad.clone() for parameter in whole.net.parameters() if parameter.grad is not None]
    assert len(expected) == 4 and all(gradient.any() for gradient in expected)
    _, learned = whole.train(whole.make_inputs(images, LABELS, LEARNING), LABELS, LEARNING)
    assert learned.item() == pytest.approx(loss.item())
    for parameter, gradient in zip(whole.net.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient)


def test_ffcm_is_cff_with_a_margin_and_one_head_on_the_last_layer() -> None:
    ffcm, cff = PRESETS["ffcm-mlp-mnist"].settings, PRESETS["cff-mlp-mnist"].settings
    assert replace(ffcm.method, views=2) == cff.method  # type: ignore[call-arg]
    assert ffcm.net == cff.net
    assert (ffcm.readout.mode, ffcm.readout.readout_layers) == ("after", "last")


def test_a_feature_that_is_no_number_makes_the_loss_none_and_the_layer_says_so() -> None:
    """The last layer's binary cross-entropy used to raise an error of torch's own, without layer and step."""
    layer = LocalLayer(tiny_spec(net=MLP, method=IffclSettings()), 1, CPU)
    activations = {name: torch.full((6, 16), math.nan) for name in (FIRST, SECOND)}
    with pytest.raises(NonFiniteLossError, match="layer 2: the loss is nan"):
        layer.train(activations, LABELS, LEARNING)
    net, rule = twins_of(MLP)[1]
    for parameter in rule.classifiers.parameters():
        torch.nn.init.constant_(parameter, math.nan)  # of the classification layers alone
    outputs = {name: numbers(6, 16) for name in (FIRST, SECOND)}
    assert rule.loss(net, outputs, context()).isnan()
