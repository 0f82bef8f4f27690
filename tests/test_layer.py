"""One local layer: what it learns from, what it passes on and when, and that a bad loss spoils nothing."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.errors import NonFiniteLossError
from pipeline.kind import Kind
from pipeline.layers.layer import LocalLayer
from pipeline.layers.shared_state import VALUES, FixedState, VersionedState
from pipeline.layers.state import State, is_finite
from pipeline.layers.tallies import EvaluationTally
from pipeline.methods import (
    Activations,
    BatchPosition,
    CffSettings,
    CflSettings,
    DclSettings,
    MethodConfig,
    Rule,
    StepContext,
)
from pipeline.methods.embeddings import EmbeddingSettings
from pipeline.nets import ConvSettings, MlpSettings, NetConfig, ResnetSettings, VitSettings
from pipeline.nets.sizes import layer_features
from pipeline.runtime.edges import edge_bytes
from pipeline.transport.message import IDS, LABELS, Message, message_bytes
from pipeline.versions import Mode
from tests.support import CPU, changed, outputs_of, tiny_spec

LABELS_OF_BATCH = torch.tensor([0, 1, 2, 0, 1, 2])
VIT = VitSettings(dim=8, heads=2, depth=3, patch=2)
MLP = MlpSettings(width=8, depth=3)
LEARNING, WATCHED = BatchPosition(training=True), BatchPosition()


def layer_of(index: int = 0, **spec: Any) -> LocalLayer:
    return LocalLayer(tiny_spec(**spec), index, CPU)


def views(seed: int = 0, num_views: int = 2, noise: float = 0.3) -> Tensor:
    """Two views of six images of three classes, which a little noise leaves easy to tell apart."""
    random = torch.Generator().manual_seed(seed)
    classes = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(99))[LABELS_OF_BATCH]
    return classes.repeat(num_views, 1, 1, 1) + noise * torch.randn(6 * num_views, 1, 8, 8, generator=random)


def train(layer: LocalLayer, activations: Activations, where: BatchPosition = LEARNING) -> tuple[Tensor, float]:
    passed, loss = layer.train(activations, LABELS_OF_BATCH, where)
    return passed["x"], loss.item()


def train_readout(layer: LocalLayer, activations: Activations) -> float:
    _, loss = layer.train_readout(activations, LABELS_OF_BATCH, WATCHED)
    assert loss is not None, "the layer has a readout"
    return loss.item()


@torch.no_grad()
def passed_on(layer: LocalLayer, activations: Activations) -> Activations:
    """What the layer passes on, without learning."""
    context = StepContext(labels=LABELS_OF_BATCH, where=WATCHED)
    return layer.rule.outputs_to_send(layer.net, layer.rule.forward(layer.net, activations, context), context)


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------------------------------------------------------------
# Learning


@pytest.mark.parametrize("net", [VIT, MLP])
def test_loss_of_a_layer_falls_as_it_learns(net: NetConfig) -> None:
    layer = layer_of(net=net)
    losses = [train(layer, {"x": views(step, noise=1.5)})[1] for step in range(40)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_update_is_one_adamw_step_on_the_layers_own_loss() -> None:
    layer = layer_of(net=MLP, lr=1e-2)
    other = copy.deepcopy(layer.net)
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2)
    context = StepContext(labels=LABELS_OF_BATCH, where=LEARNING)
    for step in range(3):
        optimizer.zero_grad()
        layer.rule.loss(other, outputs_of(other, other(views(step))), context).backward()
        optimizer.step()
        train(layer, {"x": views(step)})
    for mine, expected in zip(layer.net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)


def test_learning_rate_falls_after_its_milestones() -> None:
    spec = changed(tiny_spec(net=MLP, lr=1e-2), "train", milestones=(1, 3), lr_decay=0.1)
    layer = LocalLayer(spec, 0, CPU)
    other = copy.deepcopy(layer.net)
    optimizer = torch.optim.AdamW(other.parameters())
    context = StepContext(labels=LABELS_OF_BATCH, where=LEARNING)
    for epoch, rate in enumerate([1e-2, 1e-3, 1e-3, 1e-4, 1e-4]):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        layer.rule.loss(other, outputs_of(other, other(views(epoch))), context).backward()
        optimizer.step()
        train(layer, {"x": views(epoch)}, BatchPosition(epoch=epoch, step=4 * epoch, training=True))
        for mine, expected in zip(layer.net.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("readout_lr", "first"), [(5e-3, 5e-3), ("lr", 1e-2)])
def test_learning_rate_of_an_online_readout_falls_along(readout_lr: float | str, first: float) -> None:
    spec = changed(tiny_spec(net=MLP, lr=1e-2, readout="online"), "train", milestones=(1, 2), lr_decay=0.1)
    layer = LocalLayer(changed(spec, "readout", readout_lr=readout_lr), 0, CPU)
    other = copy.deepcopy(layer.readout)
    optimizer = torch.optim.AdamW(other.parameters())
    for epoch, rate in enumerate([first, first / 10, first / 100]):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        seen = layer.net.pool(layer.net(views(epoch))).detach()
        F.cross_entropy(other(seen), LABELS_OF_BATCH.repeat(2)).backward()
        optimizer.step()
        train(layer, {"x": views(epoch)}, BatchPosition(epoch=epoch, training=True))
        for mine, expected in zip(layer.readout.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)


def test_learning_rate_of_a_readout_afterwards_knows_no_milestones() -> None:
    """They count the epochs of the layers' training, which are over."""
    spec = changed(tiny_spec(net=MLP), "readout", readout_lr=1e-2)
    plain, with_milestones = LocalLayer(spec, 0, CPU), LocalLayer(changed(spec, "train", milestones=(1,)), 0, CPU)
    for layer in (plain, with_milestones):
        for step in range(3):
            layer.train_readout({"x": views(step, 1)}, LABELS_OF_BATCH, BatchPosition(epoch=2, step=8))
    assert same(plain.state(), with_milestones.state())


def test_no_gradient_leaves_a_layer() -> None:
    """Training the second layer reaches neither what it got nor the layer that it came from."""
    first, second = layer_of(0, readout="after"), layer_of(1, readout="online")
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
    first, second = layer_of(readout="online"), layer_of(readout="online")
    for step in range(5):
        passed = [train(layer, {"x": views(step)})[0] for layer in (first, second)]
        assert torch.equal(*passed)
    assert same(first.state(), second.state())


# ---------------------------------------------------------------------------------------------------------------------
# Passing on


@pytest.mark.parametrize("net", [VIT, MLP])
@pytest.mark.parametrize("readout", ["after", "online"])
def test_activations_passed_on_are_those_from_before_the_update(net: NetConfig, readout: str) -> None:
    layer = layer_of(net=net, readout=readout)
    before = passed_on(layer, {"x": views()})["x"]
    passed, _ = train(layer, {"x": views()})
    assert torch.equal(passed, before)
    assert not torch.equal(passed_on(layer, {"x": views()})["x"], before), "the layer has learned"


@pytest.mark.parametrize("net", [VIT, MLP])
def test_activations_passed_on_are_detached(net: NetConfig) -> None:
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

    def send(activations: Activations) -> None:
        happened.append("send")
        sent.append(activations["x"])
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

    def send(activations: Activations) -> None:
        sent.append(activations["x"])

    tally = EvaluationTally.of(tiny_spec(), 0, 8, CPU)
    passed = [
        layer.train_readout({"x": views(0, 1)}, LABELS_OF_BATCH, WATCHED, send=send)[0],
        layer.evaluate({"x": views(1, 1)}, LABELS_OF_BATCH, WATCHED, tally, send=send),
    ]
    assert len(sent) == 2
    assert all(torch.equal(activations["x"], tensor) for activations, tensor in zip(passed, sent, strict=True))


@pytest.mark.parametrize("net", [VIT, MLP, VitSettings(dim=8, heads=2, depth=3, patch=2, pooling="token")])
@pytest.mark.parametrize("num_views", [1, 2])
def test_messages_between_stages_are_as_large_as_foreseen(net: NetConfig, num_views: int) -> None:
    spec = tiny_spec(net=net, stages=3, method=CffSettings(views=num_views))  # type: ignore[arg-type]
    images = torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
    beside = {LABELS: LABELS_OF_BATCH, IDS: LABELS_OF_BATCH}
    sizes = [message_bytes(Message(Kind.TRAIN, tensors={"images": images, **beside}))]
    activations: Activations = {"x": views(0, num_views)}
    for index in range(2):
        activations, _ = LocalLayer(spec, index, CPU).train(activations, LABELS_OF_BATCH, LEARNING)
        sizes.append(message_bytes(Message(Kind.TRAIN, tensors={**activations, **beside})))
    assert edge_bytes(spec) == sizes


@pytest.mark.parametrize("net", [VIT, MLP])
def test_activations_are_contiguous(net: NetConfig) -> None:
    """As they are received: another layout may mean other rounding in the next stage."""
    activations: Activations = {"x": views()}
    for index in range(3):
        activations, _ = layer_of(index, net=net).train(activations, LABELS_OF_BATCH, LEARNING)
        assert activations["x"].is_contiguous()


@pytest.mark.parametrize("net", [VIT, MLP])
def test_reduced_precision_fits_the_channels_and_learns(net: NetConfig) -> None:
    spec = tiny_spec(net=net, stages=3, precision="bf16", readout="online")
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
    layer = layer_of(2, readout="online")
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
    for part in ("stage 2", "layer 4", "inf", "epoch 5", "step 10", "`lr`", "`temperature`"):
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
    learned, other = layer_of(1, readout="online"), layer_of(1, seed=5)
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
    layer = layer_of(net=MLP, readout="online")
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
    layer = layer_of(readout="online")
    for step in range(60):
        train(layer, {"x": views(step)})
    assert sum(accuracy(layer, 1000 + seed) for seed in range(10)) / 10 > 0.9


def test_online_readout_changes_nothing_in_its_layer() -> None:
    alone, judged = layer_of(), layer_of(readout="online")
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


@pytest.mark.parametrize(
    ("mode", "layers", "who"), [("after", "all", [0, 1, 2]), ("after", "last", [2]), ("none", "all", [])]
)
def test_layers_that_are_to_have_readouts_learn_them(mode: str, layers: str, who: list[int]) -> None:
    """The others pass on what they compute."""
    spec = changed(tiny_spec(net=MLP), "readout", mode=mode, readout_layers=layers)
    activations: Activations = {"x": views(0, 1)}
    learned = []
    for index in range(3):
        layer = LocalLayer(spec, index, CPU)
        expected = passed_on(layer, activations)["x"]
        activations, loss = layer.train_readout(activations, LABELS_OF_BATCH, WATCHED)
        assert torch.equal(activations["x"], expected)
        learned += [index] if loss is not None else []
        assert any(".readout." in name for name in layer.weights()) == (index in who)
    assert learned == who


@pytest.mark.parametrize(
    ("mode", "layers", "who"), [("online", "last", [2]), ("none", "all", []), ("after", "all", [])]
)
def test_readouts_learn_along_only_where_settings_say_so(mode: str, layers: str, who: list[int]) -> None:
    spec = changed(tiny_spec(net=MLP), "readout", mode=mode, readout_layers=layers)
    learned = []
    for index in range(3):
        layer = LocalLayer(spec, index, CPU)
        train(layer, {"x": views() if index == 0 else torch.rand(12, 8)})
        learned += [index] if any(".readout." in name for name in layer.weights()) else []
    assert learned == who


def test_readout_may_be_linear_alone() -> None:
    layer = LocalLayer(changed(tiny_spec(net=MLP), "readout", readout_norm=False), 0, CPU)
    pooled = layer.net.pool(passed_on(layer, {"x": views(0, 1)})["x"])
    linear = layer.readout.linear
    torch.testing.assert_close(layer.readout(pooled), pooled @ linear.weight.T + linear.bias)
    train_readout(layer, {"x": views(0, 1)})
    names = {name for name in layer.weights() if ".readout." in name}
    assert names == {"layers.0.readout.linear.weight", "layers.0.readout.linear.bias"}


# ---------------------------------------------------------------------------------------------------------------------
# Label embeddings


@dataclass
class Source:
    """A dictionary that stays as it is, and what a layer did with it."""

    values: Tensor
    asked: list[tuple[int, BatchPosition]] = field(default_factory=list)
    pushed: list[tuple[int, int, Tensor]] = field(default_factory=list)

    def read(self, layer: int, where: BatchPosition) -> Tensor:
        self.asked.append((layer, where))
        return self.values

    def push(self, layer: int, step: int, gradient: Tensor) -> None:
        self.pushed.append((layer, step, gradient.clone()))

    def freeze(self, epoch: int) -> None:
        raise NotImplementedError

    def checkpoint(self, key: str, step: int) -> None:
        raise NotImplementedError


def embedded(index: int, mode: Mode = "last", **values: Any) -> tuple[LocalLayer, Source]:
    """A layer of CFL without noise, and the dictionary (3, 12) that it pools to its 8 features."""
    chosen = EmbeddingSettings(embedding_mode=mode, embedding_width=12)
    method = CflSettings(embedding=chosen, **{"embedding_noise": 0.0, **values})
    source = Source(torch.randn(3, 12, generator=torch.Generator().manual_seed(5)))
    return LocalLayer(tiny_spec(net=MLP, method=method, lr=1e-2), index, CPU, source), source


def inputs(index: int) -> Activations:
    return {"x": views(0, 1) if index == 0 else torch.rand(6, 8, generator=torch.Generator().manual_seed(6))}


def loss_with(layer: LocalLayer, activations: Activations, embeddings: Tensor) -> Tensor:
    context = StepContext(labels=LABELS_OF_BATCH, where=LEARNING, shared=embeddings)
    return layer.rule.loss(layer.net, layer.rule.forward(layer.net, activations, context), context)


@pytest.mark.parametrize(
    ("mode", "who"), [("last", [2]), ("shared-sum", [0, 1, 2]), ("shared-mean", [0, 1, 2]), ("static", [])]
)
def test_layers_that_the_mode_names_push_the_gradient_of_their_own_loss(mode: Mode, who: Sequence[int]) -> None:
    for index in range(3):
        layer, source = embedded(index, mode)
        values = source.values.clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss_with(layer, inputs(index), values), values)
        train(layer, inputs(index), BatchPosition(step=7, training=True))
        assert [(of, step) for of, step, _ in source.pushed] == ([(index, 7)] if index in who else [])
        if index in who:
            torch.testing.assert_close(source.pushed[0][2], expected)
            assert expected.abs().sum() > 0


def test_layer_reads_the_dictionary_once_a_step_at_its_own_place() -> None:
    layer, source = embedded(1)
    places = [BatchPosition(epoch=epoch, step=step, training=True) for epoch, step in ((0, 0), (0, 1), (1, 2))]
    for where in places:
        train(layer, inputs(1), where)
    assert source.asked == [(1, where) for where in places]


def test_dictionary_is_read_only_once_the_activations_are_sent() -> None:
    """The next stage must not wait for a version that this one waits for."""
    layer, source = embedded(1)
    layer.train(inputs(1), LABELS_OF_BATCH, LEARNING, send=lambda _: source.asked.append((-1, LEARNING)))
    assert [index for index, _ in source.asked] == [-1, 1]


@pytest.mark.parametrize("index", [0, 2])
def test_dictionary_that_was_read_stays_as_it_is(index: int) -> None:
    """Other layers read the same version."""
    layer, source = embedded(index, "shared-sum")
    before = source.values.clone()
    train(layer, inputs(index))
    assert torch.equal(source.values, before)
    assert not source.values.requires_grad
    assert source.values.grad is None


def test_layer_whose_loss_compares_with_no_embedding_pushes_a_gradient_of_zeros() -> None:
    """Its step has to be complete; a gradient left out would be waited for."""
    layer, source = embedded(2, batch_weight=0.0, dictionary_weight=0.0)
    train(layer, inputs(2))
    assert [gradient.tolist() for _, _, gradient in source.pushed] == [torch.zeros(3, 12).tolist()]


def test_evaluation_and_readouts_push_nothing() -> None:
    layer, source = embedded(2)
    layer.evaluate(inputs(2), LABELS_OF_BATCH, WATCHED, EvaluationTally.of(tiny_spec(), 2, 8, CPU))
    layer.train_readout(inputs(2), LABELS_OF_BATCH, WATCHED)
    assert source.pushed == []


def test_loss_that_is_not_finite_pushes_nothing() -> None:
    layer, source = embedded(2)
    with pytest.raises(NonFiniteLossError):
        train(layer, {"x": torch.full((6, 8), torch.inf)})
    assert source.pushed == []


def test_layers_own_embeddings_learn_and_are_saved_with_it() -> None:
    chosen = EmbeddingSettings(embedding_mode="per-layer")
    spec = tiny_spec(net=MLP, method=DclSettings(embedding=chosen), lr=1e-2)
    layer, fresh = (LocalLayer(spec, 1, CPU) for _ in range(2))
    net, rule = copy.deepcopy(layer.net), copy.deepcopy(layer.rule)
    optimizer = torch.optim.AdamW([*net.parameters(), *rule.parameters()], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        context = StepContext(labels=LABELS_OF_BATCH, where=LEARNING)
        rule.loss(net, outputs_of(net, net(inputs(1)["x"])), context).backward()
        optimizer.step()
        train(layer, inputs(1))
    learned = layer.weights()["layers.1.rule.embeddings"]
    torch.testing.assert_close(learned, own_embeddings(rule), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(learned, own_embeddings(fresh.rule), atol=1e-3), "they have moved"
    moments = {name for name in layer.state() if "optimizer" in name and "embeddings" in name}
    assert moments == {f"layers.1.optimizer.rule.embeddings.{name}" for name in ("exp_avg", "exp_avg_sq", "step")}
    fresh.load_weights(layer.weights())
    assert same(fresh.weights(), layer.weights())


def own_embeddings(rule: Rule) -> Tensor:
    (parameter,) = rule.parameters()
    return parameter.detach()


def test_layers_own_embeddings_belong_to_seed_and_layer() -> None:
    def drawn(index: int, seed: int) -> Tensor:
        method = DclSettings(embedding=EmbeddingSettings(embedding_mode="per-layer"))
        return own_embeddings(LocalLayer(tiny_spec(net=MLP, method=method, seed=seed), index, CPU).rule)

    assert torch.equal(drawn(1, 0), drawn(1, 0))
    assert not torch.equal(drawn(1, 0), drawn(2, 0))
    assert not torch.equal(drawn(1, 0), drawn(1, 1))


def test_layer_predicts_by_its_similarity_to_label_embeddings_before_any_readout() -> None:
    layer, source = embedded(2)
    for _ in range(40):
        train(layer, inputs(2))
    tally = EvaluationTally.of(tiny_spec(), 2, 8, CPU)
    layer.evaluate(inputs(2), LABELS_OF_BATCH, WATCHED, tally)
    report = tally.report(with_predictions=True)
    features = layer.net(inputs(2)["x"])
    guesses = (features @ F.adaptive_avg_pool1d(source.values, 8).T).argmax(dim=1)
    assert report.predictions is not None
    assert report.predictions.tolist() == guesses.tolist()
    assert report.accuracy == report.direct_accuracy == (guesses == LABELS_OF_BATCH).double().mean().item() > 0.5


def test_layer_without_embeddings_predicts_nothing_before_its_readout() -> None:
    layer, tally = layer_of(), EvaluationTally.of(tiny_spec(), 0, 8, CPU)
    layer.evaluate({"x": views(0, 1)}, LABELS_OF_BATCH, WATCHED, tally)
    assert (tally.report().accuracy, tally.report().direct_accuracy) == (None, None)


@pytest.mark.parametrize(
    ("mode", "sync", "skews"),
    [
        ("last", "lagged", {0: [0, 1, 2, 3, 3, 3], 2: [0, 1, 1, 1, 1, 1]}),
        ("last", "exact", {0: [0] * 6, 2: [0] * 6}),
        ("static", "lagged", {0: [0] * 6, 2: [0] * 6}),
        ("per-layer", "lagged", {0: [None] * 6, 2: [None] * 6}),
    ],
)
def test_version_skew_is_by_how_many_updates_a_layer_reads_behind(mode: Mode, sync: Any, skews: Any) -> None:
    """Layer l of 3 reads D_{t + l − 2 − 1} at step t, with a lag of 1."""
    chosen = EmbeddingSettings(embedding_mode=mode, embedding_width=12, embedding_sync=sync, embedding_lag=1)
    spec = tiny_spec(net=MLP, method=CflSettings(embedding=chosen))
    source = FixedState(torch.randn(3, 12))
    for index, expected in skews.items():
        layer = LocalLayer(spec, index, CPU, source if chosen.shared else None)
        assert [layer.version_skew(BatchPosition(step=step, training=True)) for step in range(6)] == expected


def test_layer_of_a_method_without_embeddings_has_no_version_skew() -> None:
    assert layer_of().version_skew(LEARNING) is None


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


def test_evaluation_changes_nothing() -> None:
    layer = layer_of(readout="online")
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


def as_on_a_gpu(layer: LocalLayer) -> LocalLayer:
    """With the flags and rates that a layer on a GPU has; fused optimizers honour them on a CPU as well."""
    layer._decide_on_device()
    return layer


@pytest.mark.parametrize("net", [MLP, VIT, ConvSettings(channels=(4, 6))])
def test_a_batch_that_is_no_number_spoils_neither_readout_nor_running_statistics_on_a_gpu(net: NetConfig) -> None:
    """Symptom: the online readout learned from it, so a run that was ended by it kept nothing of its first epoch."""
    layer = as_on_a_gpu(layer_of(net=net, readout="online"))
    layer.train({"x": views()}, LABELS_OF_BATCH, LEARNING)
    good = {name: value for name, value in layer.state().items() if "num_batches_tracked" not in name}
    assert [name for name in good if ".readout." in name]
    layer.train({"x": torch.full_like(views(), float("nan"))}, LABELS_OF_BATCH, LEARNING)
    layer.train({"x": views()}, LABELS_OF_BATCH, LEARNING)
    after = layer.state()
    assert is_finite(after)
    own = {name for name in good if "readout" not in name}
    assert same({name: after[name] for name in own}, {name: good[name] for name in own})


class HostReads(TorchDispatchMode):
    """Notes each operation that waits for a GPU: its result decides what the host does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func.overloadpacket in (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


NETS_OF_GPUS: dict[str, NetConfig] = {
    "ViT": VIT,
    "MLP": MLP,
    "conv": ConvSettings(channels=(4, 6)),
    "ResNet": ResnetSettings(depth=8, width=4),
}


@pytest.mark.parametrize("net", NETS_OF_GPUS)
@pytest.mark.parametrize("method", [CffSettings(), CffSettings(views=1), CflSettings(), DclSettings()])
def test_a_training_step_on_a_gpu_reads_nothing_back(net: str, method: MethodConfig) -> None:
    """A loss or a mask that the host looks at would stop it until the GPU has caught up, once a step."""
    settings = NETS_OF_GPUS[net].resolve((1, 8, 8))
    chosen = method.resolve(layer_features(settings, (1, 8, 8)))
    spec = tiny_spec(net=settings, method=chosen, readout="online")
    shared = VersionedState(spec) if spec.shared_versions is not None else None
    layer = as_on_a_gpu(LocalLayer(spec, 0, CPU, shared))
    layer._shared = FixedState(shared.weights()[VALUES]) if shared is not None else None
    layer._contributes = False  # a contribution goes to the host by its nature
    with HostReads() as reads:
        layer.train({"x": views(num_views=layer.rule.num_views)}, LABELS_OF_BATCH, LEARNING)
    assert reads.found == []


def test_where_losses_are_read_late_no_update_is_made_from_the_bad_one_on() -> None:
    """On a GPU reading each loss would stall it: a flag on the device holds the optimizer back instead."""
    layer = as_on_a_gpu(layer_of(0))
    images = views()
    train(layer, {"x": images})
    good = layer.state()
    train(layer, {"x": torch.full_like(images, float("nan"))})
    train(layer, {"x": images})
    assert same(layer.state(), good)
