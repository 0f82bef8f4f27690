"""One local layer: what it learns from, what it passes on and when, and that a bad loss spoils nothing."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import NonFiniteLossError
from pipeline.layer import LocalLayer, State
from pipeline.messages import IDS, LABELS, Kind, Message, message_bytes
from pipeline.metrics import EvaluationTally
from pipeline.nets import MlpSettings, Net, VitSettings
from pipeline.rules import CffSettings, Context, Place, Streams
from pipeline.shapes import edge_bytes
from tests.support import CPU, tiny_spec

LABELS_OF_BATCH = torch.tensor([0, 1, 2, 0, 1, 2])
VIT = VitSettings(dim=8, heads=2, depth=3, patch=2)
MLP = MlpSettings(width=8, depth=3)
LEARNING, WATCHED = Place(training=True), Place()


def layer_of(index: int = 0, **spec: Any) -> LocalLayer:
    return LocalLayer(tiny_spec(**spec), index, CPU)


def views(seed: int = 0, num_views: int = 2, noise: float = 0.3) -> Tensor:
    """Two views of six images of three classes, which a little noise leaves easy to tell apart."""
    random = torch.Generator().manual_seed(seed)
    classes = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(99))[LABELS_OF_BATCH]
    return classes.repeat(num_views, 1, 1, 1) + noise * torch.randn(6 * num_views, 1, 8, 8, generator=random)


def train(layer: LocalLayer, streams: Streams, place: Place = LEARNING) -> tuple[Tensor, float]:
    passed, loss = layer.train(streams, LABELS_OF_BATCH, place)
    return passed["x"], loss.item()


def train_readout(layer: LocalLayer, streams: Streams) -> float:
    _, loss = layer.train_readout(streams, LABELS_OF_BATCH, WATCHED)
    assert loss is not None, "the layer has a readout"
    return loss.item()


@torch.no_grad()
def passed_on(layer: LocalLayer, streams: Streams) -> Streams:
    """What the layer passes on, without learning."""
    context = Context(labels=LABELS_OF_BATCH, place=WATCHED)
    return layer.rule.pass_on(layer.net, layer.rule.run(layer.net, streams, context), context)


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------------------------------------------------------------
# Learning


@pytest.mark.parametrize("net", [VIT, MLP])
def test_loss_of_a_layer_falls_as_it_learns(net: Net) -> None:
    layer = layer_of(net=net)
    losses = [train(layer, {"x": views(step, noise=1.5)})[1] for step in range(40)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_update_is_one_adamw_step_on_the_layers_own_loss() -> None:
    layer = layer_of(net=MLP, lr=1e-2)
    other = copy.deepcopy(layer.net)
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2)
    for step in range(3):
        optimizer.zero_grad()
        layer.rule.loss(other, {"x": other(views(step))}, Context(labels=LABELS_OF_BATCH, place=LEARNING)).backward()
        optimizer.step()
        train(layer, {"x": views(step)})
    for mine, expected in zip(layer.net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)


def test_no_gradient_leaves_a_layer() -> None:
    """Training the second layer reaches neither what it got nor the layer that it came from."""
    first, second = layer_of(0, head="after"), layer_of(1, head="online")
    passed, _ = first.train({"x": views()}, LABELS_OF_BATCH, LEARNING)
    weights = first.weights()
    gradients = [parameter.grad.clone() for parameter in first.net.parameters() if parameter.grad is not None]
    assert gradients
    second.train(passed, LABELS_OF_BATCH, LEARNING)
    assert passed["x"].grad is None
    assert same(first.weights(), weights)
    for parameter, gradient in zip(first.net.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)


def test_gradients_of_one_step_are_gone_in_the_next() -> None:
    once, twice = layer_of(lr=1e-30), layer_of(lr=1e-30)  # so small a step that the weights stay
    train(once, {"x": views(1)})
    train(twice, {"x": views(0)})
    train(twice, {"x": views(1)})
    for a, b in zip(once.net.parameters(), twice.net.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad, b.grad)


def test_equal_layers_learn_the_same_bits() -> None:
    first, second = layer_of(head="online"), layer_of(head="online")
    for step in range(5):
        passed = [train(layer, {"x": views(step)})[0] for layer in (first, second)]
        assert torch.equal(*passed)
    assert same(first.state(), second.state())


# ---------------------------------------------------------------------------------------------------------------------
# Passing on


@pytest.mark.parametrize("net", [VIT, MLP])
@pytest.mark.parametrize("head", ["after", "online"])
def test_activations_passed_on_are_those_from_before_the_update(net: Net, head: str) -> None:
    layer = layer_of(net=net, head=head)
    before = passed_on(layer, {"x": views()})["x"]
    passed, _ = train(layer, {"x": views()})
    assert torch.equal(passed, before)
    assert not torch.equal(passed_on(layer, {"x": views()})["x"], before), "the layer has learned"


@pytest.mark.parametrize("net", [VIT, MLP])
def test_activations_passed_on_are_detached(net: Net) -> None:
    passed, _ = train(layer_of(net=net), {"x": views()})
    assert passed.grad_fn is None
    assert not passed.requires_grad


def test_activations_are_sent_before_the_backward_pass() -> None:
    layer = layer_of()
    happened: list[str] = []
    for parameter in layer.net.parameters():
        parameter.register_hook(lambda _: happened.append("backward"))
    before = layer.weights()
    sent: list[Tensor] = []

    def send(streams: Streams) -> None:
        happened.append("send")
        sent.append(streams["x"])
        assert all(parameter.grad is None for parameter in layer.net.parameters())
        assert same(layer.weights(), before)

    passed, _ = layer.train({"x": views()}, LABELS_OF_BATCH, LEARNING, send=send)
    assert happened[0] == "send"
    assert happened.count("send") == 1
    assert "backward" in happened
    assert torch.equal(sent[0], passed["x"])


def test_every_way_through_a_layer_sends_once_what_it_returns() -> None:
    layer = layer_of()
    sent: list[Tensor] = []

    def send(streams: Streams) -> None:
        sent.append(streams["x"])

    tally = EvaluationTally.of(tiny_spec(), 0, 8, CPU)
    passed = [
        layer.train_readout({"x": views(0, 1)}, LABELS_OF_BATCH, WATCHED, send=send)[0],
        layer.evaluate({"x": views(1, 1)}, LABELS_OF_BATCH, WATCHED, tally, send=send),
    ]
    assert len(sent) == 2
    assert all(torch.equal(streams["x"], tensor) for streams, tensor in zip(passed, sent, strict=True))


@pytest.mark.parametrize("net", [VIT, MLP, VitSettings(dim=8, heads=2, depth=3, patch=2, pooling="token")])
@pytest.mark.parametrize("num_views", [1, 2])
def test_messages_between_stages_are_as_large_as_foreseen(net: Net, num_views: int) -> None:
    spec = tiny_spec(net=net, stages=3, method=CffSettings(views=num_views))  # type: ignore[arg-type]
    images = torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
    beside = {LABELS: LABELS_OF_BATCH, IDS: LABELS_OF_BATCH}
    sizes = [message_bytes(Message(Kind.TRAIN, tensors={"images": images, **beside}))]
    streams: Streams = {"x": views(0, num_views)}
    for index in range(2):
        streams, _ = LocalLayer(spec, index, CPU).train(streams, LABELS_OF_BATCH, LEARNING)
        sizes.append(message_bytes(Message(Kind.TRAIN, tensors={**streams, **beside})))
    assert edge_bytes(spec) == sizes


@pytest.mark.parametrize("net", [VIT, MLP])
def test_activations_are_contiguous(net: Net) -> None:
    """As they come off a wire: another layout may mean other rounding in the next stage."""
    streams: Streams = {"x": views()}
    for index in range(3):
        streams, _ = layer_of(index, net=net).train(streams, LABELS_OF_BATCH, LEARNING)
        assert streams["x"].is_contiguous()


@pytest.mark.parametrize("net", [VIT, MLP])
def test_reduced_precision_fits_the_channels_and_learns(net: Net) -> None:
    spec = tiny_spec(net=net, stages=3, precision="bf16", head="online")
    layer = LocalLayer(spec, 0, CPU)
    exact = passed_on(layer_of(0, net=net), {"x": views()})["x"]
    passed, loss = layer.train({"x": views()}, LABELS_OF_BATCH, LEARNING)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(passed["x"].float(), exact, rtol=0.05, atol=0.05)
    beside = {LABELS: LABELS_OF_BATCH, IDS: LABELS_OF_BATCH}
    assert message_bytes(Message(Kind.TRAIN, tensors={**passed, **beside})) <= edge_bytes(spec)[1]
    assert all(parameter.dtype == torch.float32 for parameter in layer.net.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# A bad loss


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_leaves_weights_and_optimizers_unchanged(bad: float) -> None:
    layer = layer_of(2, head="online")
    tokens = torch.randn(12, 16, 8, generator=torch.Generator().manual_seed(1))
    train(layer, {"x": tokens})
    before = layer.state()
    spoilt = tokens.clone()
    spoilt[3, 0, 0] = bad
    with pytest.raises(NonFiniteLossError, match="layer 3: the loss is nan") as error:
        train(layer, {"x": spoilt})
    assert error.value.layer == 2
    assert same(layer.state(), before)


def test_non_finite_loss_error_says_where_and_what_to_do() -> None:
    error = NonFiniteLossError(3, float("inf"), stage=1, epoch=4, step=9)
    for part in ("stage 2", "layer 4", "inf", "epoch 5", "step 10", "--lr", "--temperature"):
        assert part in str(error)


def test_non_finite_loss_error_survives_pickling() -> None:
    """Ray pickles what an actor raises."""
    error = NonFiniteLossError(3, float("nan"), stage=1, epoch=4, step=9)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - bytes of our own
    assert type(again) is NonFiniteLossError
    assert str(again) == str(error)
    assert again.layer == 3
    assert again.loss != again.loss  # NaN
    assert again.result is None


# ---------------------------------------------------------------------------------------------------------------------
# Weights and states


def test_weights_make_an_equal_layer_of_another() -> None:
    learned, other = layer_of(1, head="online"), layer_of(1, seed=5)
    tokens = torch.randn(12, 16, 8)
    train(learned, {"x": tokens})
    other.load_weights(learned.weights())
    assert same(other.weights(), learned.weights())
    assert torch.equal(passed_on(other, {"x": tokens})["x"], passed_on(learned, {"x": tokens})["x"])


def test_weights_are_copies() -> None:
    layer = layer_of()
    weights = layer.weights()
    kept = {name: value.clone() for name, value in weights.items()}
    train(layer, {"x": views()})
    assert same(weights, kept)
    assert not same(layer.weights(), weights)


def test_weights_are_named_by_layer_and_take_only_their_own() -> None:
    """layers.1 and layers.10 are not to be confused."""
    spec = tiny_spec(net=MlpSettings(width=8, depth=11))
    layers = [LocalLayer(spec, index, CPU) for index in (1, 10)]
    merged = layers[0].weights() | layers[1].weights()
    assert sorted(merged) == [f"layers.{n}.net.linear.{name}" for n in (1, 10) for name in ("bias", "weight")]
    expected = layers[0].weights()
    layers[0].load_weights(merged)
    assert same(layers[0].weights(), expected)


def test_readout_is_part_of_the_weights_once_it_has_learned() -> None:
    layer = layer_of()
    assert not any("readout" in name for name in layer.weights())
    train_readout(layer, {"x": views(0, 1)})
    assert {name for name in layer.weights() if "readout" in name} == {
        f"layers.0.readout.{name}" for name in ("norm.weight", "norm.bias", "linear.weight", "linear.bias")
    }


def test_loaded_readout_judges() -> None:
    learned, other = layer_of(), layer_of()
    train_readout(learned, {"x": views(0, 1)})
    other.load_weights(learned.weights())
    tally = EvaluationTally.of(tiny_spec(), 0, 8, CPU)
    other.evaluate({"x": views(0, 1)}, LABELS_OF_BATCH, WATCHED, tally)
    assert tally.report().accuracy is not None


def test_state_holds_both_optimizers_under_their_parameters_names() -> None:
    layer = layer_of(net=MLP, head="online")
    train(layer, {"x": views()})
    optimizers = {name for name in layer.state() if ".net." not in name and ".readout." not in name}
    fields = ("exp_avg", "exp_avg_sq", "step")
    assert optimizers == {
        *(f"layers.0.optimizer.linear.{name}.{field}" for name in ("weight", "bias") for field in fields),
        *(
            f"layers.0.readout_optimizer.{part}.{name}.{field}"
            for part in ("norm", "linear")
            for name in ("weight", "bias")
            for field in fields
        ),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The readout


def accuracy(layer: LocalLayer, seed: int) -> float:
    tally = EvaluationTally.of(tiny_spec(), 0, 8, CPU)
    layer.evaluate({"x": views(seed, 1)}, LABELS_OF_BATCH, WATCHED, tally)
    value = tally.report().accuracy
    assert value is not None
    return value


def test_online_readout_learns_along_with_its_layer() -> None:
    layer = layer_of(head="online")
    for step in range(60):
        train(layer, {"x": views(step)})
    assert sum(accuracy(layer, 1000 + seed) for seed in range(10)) / 10 > 0.9


def test_online_readout_changes_nothing_in_its_layer() -> None:
    alone, judged = layer_of(), layer_of(head="online")
    for step in range(5):
        train(alone, {"x": views(step)})
        train(judged, {"x": views(step)})
    assert same(alone.weights(), {n: v for n, v in judged.weights().items() if ".net." in n})


def test_readout_afterwards_learns_on_a_frozen_layer() -> None:
    layer = layer_of()
    frozen = layer.weights()
    losses = [train_readout(layer, {"x": views(step, 1)}) for step in range(60)]
    assert losses[-1] < 0.7 * losses[0]
    assert accuracy(layer, 1000) == 1
    assert same({n: v for n, v in layer.weights().items() if ".net." in n}, frozen)
    assert all(parameter.grad is None for parameter in layer.net.parameters())


def test_first_readout_loss_is_the_cross_entropy_over_all_views() -> None:
    layer = layer_of()
    pooled = layer.net.pool(passed_on(layer, {"x": views()})["x"])
    expected = F.cross_entropy(layer.readout(pooled), LABELS_OF_BATCH.repeat(2)).item()
    assert train_readout(layer, {"x": views()}) == pytest.approx(expected, rel=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


def test_evaluation_changes_nothing() -> None:
    layer = layer_of(head="online")
    train(layer, {"x": views()})
    before = layer.state()
    layer.evaluate({"x": views(1, 1)}, LABELS_OF_BATCH, WATCHED, EvaluationTally.of(tiny_spec(), 0, 8, CPU))
    assert same(layer.state(), before)


def test_evaluation_of_a_last_batch_of_one_image_is_finite() -> None:
    layer = layer_of()
    tally = EvaluationTally.of(tiny_spec(), 0, 8, CPU)
    layer.evaluate({"x": views(0, 1)}, LABELS_OF_BATCH, WATCHED, tally)
    five_sixths = tally.report().loss * 6
    layer.evaluate({"x": views(0, 1)[:1]}, LABELS_OF_BATCH[:1], WATCHED, tally)
    assert tally.report().loss == pytest.approx(five_sixths / 7)


def test_where_losses_are_read_late_no_update_is_made_from_the_bad_one_on() -> None:
    """On a GPU reading each loss would stall it: a flag on the device holds the optimizer back instead."""
    layer = layer_of(0)
    layer._not_finite = torch.zeros(())  # as on a GPU; the fused optimizer honours it on a CPU as well
    images = views()
    train(layer, {"x": images})
    good = layer.state()
    train(layer, {"x": torch.full_like(images, float("nan"))})
    train(layer, {"x": images})
    assert same(layer.state(), good)
