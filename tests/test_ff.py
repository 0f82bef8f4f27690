"""FF, SymBa and FF Collab: their losses against double loops, what nets and readouts are shown, how layers predict."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.layers.layer import LocalLayer
from pipeline.layers.shared_state import FixedState
from pipeline.methods import (
    Activations,
    BatchPosition,
    CollabSettings,
    FfSettings,
    MethodConfig,
    ModelInfo,
    StepContext,
    SymbaSettings,
)
from pipeline.methods.ff import CollabRule, FfRule, SymbaRule
from pipeline.methods.goodness import COPIES, GOODNESS, NEUTRAL, GoodnessRule
from pipeline.methods.label_input import LabelInput, labelled
from pipeline.methods.shared_state import TrainingInfo
from pipeline.nets import Layer, MlpSettings, NetConfig, VitSettings
from pipeline.nets.patches import cut
from tests.support import CPU, tiny_spec

SHAPE = (1, 8, 8)
NUM_CLASSES = 3
MODEL = ModelInfo(num_layers=3, num_classes=NUM_CLASSES)
LABELS = torch.tensor([0, 2, 1, 1, 2])
LEARNING, WATCHED = BatchPosition(training=True, step=4), BatchPosition(step=4)
VIT, MLP = VitSettings(dim=8, heads=2, depth=3, patch=2), MlpSettings(width=16, depth=3)
EVERY = [FfSettings(), SymbaSettings(), CollabSettings()]
NETS = pytest.mark.parametrize("net", [VIT, MLP], ids=["vit", "mlp"])


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def context(where: BatchPosition = LEARNING, shared: Tensor | None = None) -> StepContext:
    generator = torch.Generator().manual_seed(7) if where.training else None
    return StepContext(labels=LABELS, where=where, shared=shared, generator=generator)


def layers_of(net: NetConfig, method: MethodConfig | None = None) -> list[tuple[Layer, GoodnessRule]]:
    torch.manual_seed(0)
    adapted = labelled(net)
    layers = [adapted.build(index, SHAPE) for index in range(net.num_layers)]
    rules = [(method or FfSettings()).build(index, layer, MODEL) for index, layer in enumerate(layers)]
    assert all(isinstance(rule, GoodnessRule) for rule in rules)
    return list(zip(layers, rules, strict=True))  # type: ignore[arg-type]


def through(layers: list[tuple[Layer, GoodnessRule]], where: BatchPosition, images: Tensor) -> list[Activations]:
    """What every layer puts out."""
    outputs, activations = [], layers[0][1].make_inputs(images, context(where))
    for layer, rule in layers:
        outputs.append(rule(layer, activations, context(where)))
        activations = rule.outputs_to_send(layer, outputs[-1], context(where))
    return outputs


# ---------------------------------------------------------------------------------------------------------------------
# The losses


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def double_loop_ff(right: Tensor, wrong: Tensor, threshold: float) -> float:
    """Eqs. 1 and 2 read aloud: every image, every wrong label, in Python floats."""
    count, total = right.shape[1], 0.0
    for n in range(count):
        total += softplus(threshold - float(right[0, n])) / 2
        for w in range(len(wrong)):
            total += softplus(float(wrong[w, n]) - threshold) / 2 / len(wrong)
    return total / count


def double_loop_symba(right: Tensor, wrong: Tensor, sharpness: float) -> float:
    """Eq. 7 read aloud."""
    count, total = right.shape[1], 0.0
    for n in range(count):
        for w in range(len(wrong)):
            total += softplus(-sharpness * (float(right[0, n]) - float(wrong[w, n]))) / len(wrong)
    return total / count


def ff_of(threshold: float) -> FfRule:
    return FfRule(FfSettings(threshold=threshold), 1, MLP.build(1, SHAPE), MODEL)


def symba_of(sharpness: float) -> SymbaRule:
    return SymbaRule(SymbaSettings(sharpness=sharpness), 1, MLP.build(1, SHAPE), MODEL)


def goodness(num_wrong: int) -> tuple[Tensor, Tensor]:
    """Of nine images with the right label and with wrong ones, float64."""
    each = 3 * numbers(num_wrong + 1, 9).double().square()
    return each[:1].requires_grad_(), each[1:].requires_grad_()


@pytest.mark.parametrize("num_wrong", [1, 4])
@pytest.mark.parametrize("strength", [0.5, 2.0, 7.0])
def test_the_losses_equal_double_loops_in_float64(num_wrong: int, strength: float) -> None:
    right, wrong = (each.detach() for each in goodness(num_wrong))
    ff, symba = ff_of(strength), symba_of(strength)
    assert ff.contrast(right, wrong).item() == pytest.approx(double_loop_ff(right, wrong, strength), rel=1e-12)
    assert symba.contrast(right, wrong).item() == pytest.approx(double_loop_symba(right, wrong, strength), rel=1e-12)


def test_the_losses_gradients_are_those_of_finite_differences() -> None:
    for rule in (ff_of(2.0), symba_of(1.5)):
        assert torch.autograd.gradcheck(rule.contrast, goodness(3))


@NETS
def test_goodness_is_the_mean_square_of_pooled_features_without_the_labels_token(net: NetConfig) -> None:
    layers = layers_of(net)
    for (layer, _), outputs in zip(layers, through(layers, LEARNING, numbers(5, *SHAPE)), strict=True):
        copies = outputs[COPIES].double()
        tokens = copies[:, 1:] if net is VIT else copies[:, None]  # (R, T, C)
        for row in range(len(copies)):
            squares = [
                (sum(float(token[feature]) for token in tokens[row]) / len(tokens[row])) ** 2
                for feature in range(layer.features)
            ]
            expected = sum(squares) / len(squares)
            assert float(outputs[GOODNESS][row, -1]) == pytest.approx(expected, rel=1e-4)


def test_collab_is_ff_on_the_goodness_of_all_layers() -> None:
    """By a loop: earlier layers' goodness is the same image's, later layers' the state's."""
    layers = layers_of(MLP, CollabSettings())
    state = torch.tensor([[9.0, 9.0], [9.0, 9.0], [0.7, 0.2]])
    outputs = through(layers, LEARNING, numbers(5, *SHAPE))
    (_, first), (layer, rule), (_, last) = layers
    loss = rule.loss(layer, outputs[1], context(LEARNING, state))
    total = outputs[1][GOODNESS].double().sum(dim=1)
    assert outputs[1][GOODNESS].shape == (10, 2)
    expected = double_loop_ff(total[None, :5] + 0.7, total[None, 5:] + 0.2, 2.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    alone = last.loss(layer, outputs[2], context(LEARNING, torch.full((3, 2), 5.0)))
    assert torch.equal(alone, last.loss(layer, outputs[2], context(LEARNING, torch.zeros(3, 2)))), "none is later"
    of_first = double_loop_ff(outputs[0][GOODNESS][None, :5, 0] + 9.7, outputs[0][GOODNESS][None, 5:, 0] + 9.2, 2.0)
    assert first.loss(layer, outputs[0], context(LEARNING, state)).item() == pytest.approx(of_first, rel=1e-5)


def test_collab_sends_no_gradient_to_other_layers() -> None:
    layers = layers_of(MLP, CollabSettings())
    state = torch.ones(3, 2, requires_grad=True)
    outputs = through(layers, LEARNING, numbers(5, *SHAPE))
    layers[1][1].loss(layers[1][0], outputs[1], context(LEARNING, state)).backward()
    assert state.grad is None
    assert all(parameter.grad is None for layer, _ in (layers[0], layers[2]) for parameter in layer.parameters())
    assert all(parameter.grad is not None for parameter in layers[1][0].parameters())


def test_a_layers_contribution_to_collab_is_its_mean_goodness() -> None:
    layers = layers_of(MLP, CollabSettings())
    layer, rule = layers[1]
    assert isinstance(rule, CollabRule)
    outputs = through(layers, LEARNING, numbers(5, *SHAPE))[1]
    given = rule.contribution(layer, outputs, context(LEARNING, torch.ones(3, 2)))
    own = outputs[GOODNESS][:, -1]
    torch.testing.assert_close(given[1], torch.stack([own[:5].mean(), own[5:].mean()]))
    assert not given[[0, 2]].any()


def test_the_state_of_collab_holds_every_layers_last_contribution() -> None:
    info = TrainingInfo(
        num_layers=3, num_classes=2, steps_per_epoch=4, seed=0, lr=1, weight_decay=0, lr_factor=lambda epoch: 1
    )
    state = CollabSettings().shared_state(info)
    assert not state.values.any()
    for step in range(2):
        rows = {(layer, step): torch.zeros(3, 2) for layer in range(3)}
        for layer in range(3):
            rows[layer, step][layer] = torch.tensor([layer + step, 10.0 * layer])
        state.update(rows, state.versions.updates(step))
        assert state.values.tolist() == [[layer + step, 10.0 * layer] for layer in range(3)]


# ---------------------------------------------------------------------------------------------------------------------
# What a net is shown


def test_a_perceptron_sees_the_label_in_the_first_pixels_and_the_image_in_all_others() -> None:
    images = numbers(4, 2, 3, 3)
    shown = LabelInput(MLP.build(0, (2, 3, 3)), 5)(images, torch.tensor([4, 0, 1, 5]))
    assert shown.shape == images.shape
    assert shown.flatten(1)[:, :5].tolist() == [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert torch.equal(shown.flatten(1)[:, 5:], images.flatten(1)[:, 5:])


def test_later_layers_learn_at_a_rate_of_their_own() -> None:
    spec = tiny_spec(net=MLP, method=FfSettings(later_lr=5.0), lr=1e-3)
    first, second = (LocalLayer(spec, index, CPU) for index in range(2))
    passed, _ = first.train(first.make_inputs(numbers(5, *SHAPE), LABELS, LEARNING), LABELS, LEARNING)
    second.train(passed, LABELS, LEARNING)
    assert [layer.vitals()["learning_rate"] for layer in (first, second)] == pytest.approx([1e-3, 5e-3])


@NETS
def test_a_label_is_shown_as_strongly_as_it_is_asked_for(net: NetConfig) -> None:
    plain, strong = (layers_of(net, FfSettings(label_scale=scale))[0][1].label for scale in (1.0, 8.0))
    assert plain is not None and strong is not None
    assert torch.equal(strong.codes, 8 * plain.codes)


def test_a_transformer_sees_the_label_as_a_patch_in_front_of_the_images() -> None:
    images, net = numbers(4, *SHAPE), labelled(VIT)
    torch.manual_seed(3)
    label = LabelInput(net.build(0, SHAPE), NUM_CLASSES)
    shown = label(images, torch.tensor([2, 0, 2, 3]))
    assert shown.shape == (4, 17, 4)
    assert torch.equal(shown[:, 1:], cut(images, 2))
    assert torch.equal(shown[0, 0], shown[2, 0])
    assert not torch.equal(shown[0, 0], shown[1, 0])
    assert not shown[3, 0].any(), "the neutral label is a patch of zeros"
    assert not list(label.parameters()), "labels' patches are fixed"


def test_the_labels_token_has_a_position_of_its_own_and_goes_through_the_same_embedding() -> None:
    embedding = labelled(VIT).build(0, SHAPE).embedding
    patches = numbers(2, 17, 4)
    tokens = embedding(patches)  # type: ignore[operator]
    for place in range(17):
        position = embedding.label_position[0] if place == 0 else embedding.position[place - 1]  # type: ignore[index, union-attr]
        expected = torch.relu(embedding.project(patches[:, place])) + position  # type: ignore[operator, union-attr]
        torch.testing.assert_close(tokens[:, place], expected)


@NETS
def test_in_training_every_image_comes_with_its_label_and_with_a_wrong_one(net: NetConfig) -> None:
    images = numbers(5, *SHAPE)
    rule = layers_of(net)[0][1]
    assert rule.label is not None
    (inputs,) = rule.make_inputs(images, context()).values()
    right, wrong = inputs.chunk(2)
    assert torch.equal(right, rule.label(images, LABELS))
    for n, label in enumerate(LABELS.tolist()):
        others = [rule.label(images[n : n + 1], torch.tensor([z]))[0] for z in range(NUM_CLASSES) if z != label]
        assert sum(torch.equal(wrong[n], other) for other in others) == 1


def test_wrong_labels_are_keyed_by_seed_and_step_and_each_comes_about_as_often() -> None:
    labels, images = torch.arange(600) % 3, torch.zeros(600, *SHAPE)

    def wrong(seed: int, step: int) -> Tensor:
        layer = LocalLayer(tiny_spec(net=MLP, method=FfSettings(), seed=seed), 0, CPU)
        inputs = layer.make_inputs(images, labels, BatchPosition(training=True, step=step))
        return inputs[COPIES][600:].flatten(1)[:, :3].argmax(dim=1)

    assert torch.equal(wrong(0, 5), wrong(0, 5))
    assert not torch.equal(wrong(0, 5), wrong(0, 6))
    assert not torch.equal(wrong(0, 5), wrong(1, 5))
    steps = (wrong(0, 5) - labels) % 3
    assert set(steps.tolist()) == {1, 2}
    assert 240 < int((steps == 1).sum()) < 360


@pytest.mark.parametrize("method", EVERY, ids=lambda method: method.kind)
@NETS
def test_a_layer_does_not_see_how_long_its_input_is(net: NetConfig, method: MethodConfig) -> None:
    """By a power of two, which changes no other bit. The first layer sees images as they are."""
    layers = layers_of(net, method)
    copies = through(layers, LEARNING, numbers(5, *SHAPE))[0][COPIES]
    layer, rule = layers[1]
    entering = {GOODNESS: torch.ones(10, 1)} if isinstance(rule, CollabRule) else {}
    once, twice = (rule(layer, {COPIES: scale * copies, **entering}, context()) for scale in (1, 8))
    assert torch.equal(once[COPIES], twice[COPIES])
    layer, rule = layers[0]
    (x,) = rule.make_inputs(numbers(5, *SHAPE), context()).values()
    assert not torch.equal(rule(layer, {COPIES: x}, context())[COPIES], rule(layer, {COPIES: 8 * x}, context())[COPIES])


def test_a_dead_sample_stays_a_number() -> None:
    layer, rule = layers_of(MLP)[1]
    assert torch.isfinite(rule(layer, {COPIES: torch.zeros(2, 16)}, context())[GOODNESS]).all()


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation, prediction, readouts


@pytest.mark.parametrize("method", [FfSettings(), SymbaSettings()], ids=["ff", "symba"])
def test_the_loss_in_evaluation_is_training_s_in_the_mean_over_wrong_labels(method: MethodConfig) -> None:
    images = numbers(5, *SHAPE)
    layers = layers_of(MLP, method)
    layer, rule = layers[0]
    assert rule.label is not None
    losses = []
    for step in range(1, NUM_CLASSES):
        shown = torch.cat([LABELS, (LABELS + step) % NUM_CLASSES])
        pairs = rule(layer, {COPIES: rule.label(images.repeat(2, 1, 1, 1), shown)}, context())
        losses.append(rule.loss(layer, pairs, context()))
    watched = rule.loss(layer, through(layers, WATCHED, images)[0], context(WATCHED))
    torch.testing.assert_close(watched, torch.stack(losses).mean())


@NETS
def test_an_image_s_class_is_the_one_whose_label_has_the_most_goodness_from_the_second_layer_on(
    net: NetConfig,
) -> None:
    images = numbers(5, *SHAPE)
    layers = layers_of(net)
    outputs = through(layers, WATCHED, images)
    rule = layers[0][1]
    assert rule.label is not None
    own = torch.zeros(3, 5, NUM_CLASSES)  # layer, image, class: one pass for each class
    for label in range(NUM_CLASSES):
        x = rule.label(images, torch.full((5,), label))
        for number, (layer, each) in enumerate(layers):
            out = each(layer, {COPIES: x}, context())
            own[number, :, label] = out[GOODNESS][:, -1]
            x = out[COPIES]
    scores = [each.scores(layer, out, context(WATCHED)) for (layer, each), out in zip(layers, outputs, strict=True)]
    torch.testing.assert_close(scores[0], own[0])
    torch.testing.assert_close(scores[1], own[1])
    torch.testing.assert_close(scores[2], own[1] + own[2])


def test_readouts_see_the_neutral_label_and_all_layers_but_the_first() -> None:
    images = numbers(5, *SHAPE)
    layers = layers_of(VIT)
    outputs = through(layers, WATCHED, images)
    rule = layers[0][1]
    assert rule.label is not None
    x = rule.label(images, torch.full((5,), NUM_CLASSES))
    for (layer, each), out in zip(layers, outputs, strict=True):
        x = each(layer, {COPIES: x}, context())[COPIES]
        torch.testing.assert_close(each.readout_input(layer, out), x[:, 1:].mean(dim=1))
        torch.testing.assert_close(each.features(layer, out), x[:, 1:].mean(dim=1))
    assert [FfSettings().readout_inputs(index, 4) for index in range(4)] == [(0,), (1,), (1, 2), (1, 2, 3)]


def test_what_readouts_alone_learn_from_comes_without_copies_for_each_class() -> None:
    layers = layers_of(VIT, CollabSettings())
    where = replace(WATCHED, for_readouts=True)
    for outputs in through(layers, where, numbers(5, *SHAPE)):
        assert outputs.keys() == {NEUTRAL, f"{NEUTRAL}-pooled"}
        assert len(outputs[NEUTRAL]) == 5


@pytest.mark.parametrize(
    ("method", "sent"), [(FfSettings(), {COPIES}), (SymbaSettings(), {COPIES}), (CollabSettings(), {COPIES, GOODNESS})]
)
def test_goodness_travels_in_training_only_where_layers_collaborate(method: MethodConfig, sent: set[str]) -> None:
    spec = tiny_spec(net=VIT, method=method)
    layer = LocalLayer(spec, 0, CPU, FixedState(torch.zeros(3, 2)) if "collab" in method.kind else None)
    inputs = layer.make_inputs(numbers(5, *SHAPE), LABELS, LEARNING)
    outputs = layer.forward.outputs(inputs, context())
    assert layer.forward.to_send(outputs, context(), for_readouts=False).keys() == sent


def test_its_figures_are_the_mean_goodness_with_right_and_with_wrong_labels() -> None:
    layers = layers_of(MLP)
    outputs = through(layers, WATCHED, numbers(5, *SHAPE))[1]
    by_class = outputs[GOODNESS][:, -1].view(NUM_CLASSES, 5)
    right = torch.tensor([float(by_class[label, n]) for n, label in enumerate(LABELS)])
    found = layers[1][1].figures(layers[1][0], outputs, context(WATCHED))
    assert found.keys() == set(FfSettings.figures)
    torch.testing.assert_close(found["goodness_right"], right.mean())
    torch.testing.assert_close(found["goodness_wrong"], (by_class.sum() - right.sum()) / 10)
