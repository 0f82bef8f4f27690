"""Backpropagation, feedback alignment, DFA and DRTP on the nets of local learning: each formula, and whole runs."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from launch.cli import main
from pipeline import load
from pipeline.config import build, checks
from pipeline.config import settings as settings_module
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import AugmentSettings, PipelineSettings, Settings, TrainSettings
from pipeline.errors import UserError
from pipeline.export import card_of, save
from pipeline.kind import Kind
from pipeline.layers.layer import LocalLayer
from pipeline.methods import BaselineSettings, BatchPosition, ModelInfo, Rule, StepContext
from pipeline.methods.baseline import Feedback
from pipeline.nets import (
    ConvSettings,
    MixerSettings,
    MlpSettings,
    NetConfig,
    ResnetSettings,
    Shape,
    VggSettings,
    VitSettings,
)
from pipeline.nets.feedback import FeedbackConv2d, FeedbackLinear
from pipeline.nets.whole import WholeLayer
from pipeline.runtime.serial import train_serial
from tests.conftest import make_run
from tests.support import CPU, tiny_spec
from tests.support_replicas import out_of_reach, replicas_of

KINDS: tuple[Feedback, ...] = ("bp", "fa", "dfa", "drtp")
NETS: dict[str, NetConfig] = {
    "MLP": MlpSettings(width=12, depth=3, dropout=0.2),
    "FC": MlpSettings(width=12, depth=2, groups=3, norm="after"),
    "conv": ConvSettings(channels=(4, 6, 8)),
    "VGG8b": VggSettings(scale=0.02, dropout=0.1),
    "ResNet": ResnetSettings(depth=8, width=4),
    "ViT": VitSettings(dim=8, heads=2, depth=2),
    "Mixer": MixerSettings(dim=8, depth=2),
}
WITHOUT_DROPOUT = NETS | {"MLP": MlpSettings(width=12, depth=3), "VGG8b": VggSettings(scale=0.02, dropout=0.0)}
SHAPE: Shape = (1, 16, 16)
NUM_CLASSES = 3


def spec_of(
    feedback: Feedback,
    net: NetConfig,
    *,
    seed: int = 0,
    lr: float = 4e-3,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> RunSpec:
    spec = tiny_spec(
        net=net.resolve(SHAPE), method=BaselineSettings(feedback=feedback), seed=seed, lr=lr, precision=precision
    )
    return replace(spec, shape=SHAPE)


def built(feedback: Feedback, net: NetConfig) -> tuple[WholeLayer, Rule, StepContext, Tensor]:
    """A whole net with its rule in float64, a batch's context while training, and its images."""
    torch.manual_seed(0)
    method = BaselineSettings(feedback=feedback)
    layer = method.adapt(net.resolve(SHAPE)).build(0, SHAPE)
    rule = method.build(0, layer, ModelInfo(num_layers=1, num_classes=NUM_CLASSES))
    context = StepContext(labels=torch.tensor([0, 2, 1, 1, 2]), where=BatchPosition(training=True))
    return layer.double(), rule.double(), context, torch.randn(5, *SHAPE, dtype=torch.float64)


def batches(count: int, *, seed: int = 0, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, *SHAPE, generator=generator), torch.randint(NUM_CLASSES, (size,), generator=generator))
        for _ in range(count)
    ]


def train(layer: LocalLayer, steps: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [
        layer.train({"x": images}, labels, BatchPosition(step=step, training=True))[1]
        for step, (images, labels) in enumerate(steps)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Backpropagation is what a plain training loop does


class PlainConv(nn.Module):
    """conv[4 6] with a linear classifier, written as anybody would."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(6, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.body(x).mean(dim=(2, 3)))
        return scores


def plain_mlp() -> nn.Module:
    units = 16 * 16
    hidden: list[nn.Module] = []
    for _ in range(3):
        hidden += [nn.Linear(units, 12), nn.ReLU()]
        units = 12
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(12, NUM_CLASSES))


@pytest.mark.parametrize(
    ("net", "plain"),
    [(MlpSettings(width=12, depth=3), plain_mlp()), (ConvSettings(channels=(4, 6)), PlainConv())],
    ids=["MLP", "conv"],
)
def test_bp_gives_the_bits_of_a_plain_training_loop(net: NetConfig, plain: nn.Module) -> None:
    layer = LocalLayer(spec_of("bp", net), 0, CPU)
    ours = [*layer.net.state_dict().values(), *layer.rule.state_dict().values()]
    theirs = plain.state_dict()
    assert [value.shape for value in ours] == [value.shape for value in theirs.values()]
    plain.load_state_dict(dict(zip(theirs, ours, strict=True)))
    optimizer = torch.optim.AdamW(plain.parameters(), lr=4e-3, fused=True)

    steps = batches(8)
    losses = train(layer, steps)
    for (images, labels), ours_lost in zip(steps, losses, strict=True):
        loss = F.cross_entropy(plain(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.equal(loss, ours_lost)
    trained = [*layer.net.state_dict().values(), *layer.rule.state_dict().values()]
    assert all(torch.equal(mine, value) for mine, value in zip(trained, plain.state_dict().values(), strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# On several GPUs by torch.nn.DataParallel


class WithLoss(nn.Module):
    """A whole net and its rule as one module: images in, the loss out."""

    def __init__(self, layer: WholeLayer, rule: Rule) -> None:
        super().__init__()
        self.layer, self.rule = layer, rule

    def forward(self, images: Tensor, context: StepContext) -> Tensor:
        return self.rule.loss(self.layer, self.rule(self.layer, {"x": images}, context), context)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", WITHOUT_DROPOUT)
def test_replicas_of_a_net_learn_what_it_learns_itself(net: str, kind: Feedback) -> None:
    """Symptom: StopIteration in the benchmark's row dataparallel. A replica has no parameters of its own."""
    layer, rule, context, images = built(kind, WITHOUT_DROPOUT[net])
    whole = WithLoss(layer, rule)
    shares = [(images[rows], replace(context, labels=context.labels[rows])) for rows in (slice(3), slice(2, 5))]
    plain = copy.deepcopy(whole)
    expected = [plain(*share) for share in shares]
    torch.stack(expected).sum().backward()

    replicas = replicas_of(whole, 2)
    assert not list(replicas[0].parameters()), "as torch makes them"
    with out_of_reach(whole):
        losses = [replica(*share) for replica, share in zip(replicas, shares, strict=True)]
    torch.stack(losses).sum().backward()
    assert torch.equal(torch.stack(losses), torch.stack(expected))
    gradients = {name: parameter.grad for name, parameter in whole.named_parameters()}
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name)


# ---------------------------------------------------------------------------------------------------------------------
# Feedback alignment


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "3×3": {"padding": 1},
    "stride": {"stride": 2, "padding": 1},
    "stride that leaves pixels over": {"stride": (3, 2)},
    "groups": {"groups": 2, "padding": (2, 0)},
    "dilation": {"dilation": 2},
    "no bias": {"bias": False, "stride": 2},
    "reflected edge": {"padding": (2, 1), "padding_mode": "reflect"},
}


def feedback_conv(how: dict[str, Any]) -> tuple[nn.Conv2d, FeedbackConv2d]:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, **how).double()
    return conv, FeedbackConv2d(copy.deepcopy(conv), torch.randn_like(conv.weight))


@pytest.mark.parametrize("how", CONVOLUTIONS)
def test_a_convolution_passes_the_error_back_through_its_feedback_weights(how: str) -> None:
    conv, ours = feedback_conv(CONVOLUTIONS[how])
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64, requires_grad=True)
    y = ours(x)
    error = torch.randn_like(y)
    got = torch.autograd.grad(y, [x, *ours.parameters()], error)

    assert torch.equal(y, conv(x))
    exact = torch.autograd.grad(conv(x), list(conv.parameters()), error)
    with torch.no_grad():
        conv.weight.copy_(ours.feedback)  # B in the place of W is all that differs for the input
    back = torch.autograd.grad(conv(x), x, error)
    for mine, theirs in zip(got, [*back, *exact], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_linear_layer_passes_the_error_back_through_its_feedback_weights() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(5, 4).double()
    ours = FeedbackLinear(linear, torch.randn(4, 5, dtype=torch.float64))
    x = torch.randn(3, 7, 5, dtype=torch.float64, requires_grad=True)
    y = ours(x)
    error = torch.randn_like(y)
    for_x, for_weight, for_bias = torch.autograd.grad(y, [x, ours.weight, ours.bias], error)
    assert torch.equal(y, linear(x))
    torch.testing.assert_close(for_x, torch.einsum("nto,oi->nti", error, ours.feedback))
    torch.testing.assert_close(for_weight, torch.einsum("nto,nti->oi", error, x))
    torch.testing.assert_close(for_bias, error.sum(dim=(0, 1)))


@pytest.mark.parametrize("how", CONVOLUTIONS)
def test_feedback_weights_equal_to_the_weights_give_the_true_gradient(how: str) -> None:
    _, conv = feedback_conv(CONVOLUTIONS[how])
    conv.feedback.copy_(conv.weight.detach())
    assert torch.autograd.gradcheck(conv, torch.randn(1, 4, 7, 6, dtype=torch.float64, requires_grad=True))
    linear = FeedbackLinear(nn.Linear(3, 2).double(), torch.zeros(2, 3, dtype=torch.float64))
    linear.feedback.copy_(linear.weight.detach())
    assert torch.autograd.gradcheck(linear, torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True))


def test_gradients_of_weights_are_true_ones() -> None:
    _, conv = feedback_conv({"stride": 2, "groups": 2})
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    linear = FeedbackLinear(nn.Linear(3, 2).double(), torch.randn(2, 3, dtype=torch.float64))
    rows = torch.randn(4, 3, dtype=torch.float64)
    for module, given in ((conv, x), (linear, rows)):
        weights = {name: value.detach().clone().requires_grad_() for name, value in module.named_parameters()}

        def of_weights(*values: Tensor, module: nn.Module = module, given: Tensor = given) -> Tensor:
            named = dict(module.named_parameters()).keys()
            result: Tensor = torch.func.functional_call(module, dict(zip(named, values, strict=True)), (given,))
            return result

        assert torch.autograd.gradcheck(of_weights, tuple(weights.values()))


def test_fa_on_a_perceptron_is_the_formula() -> None:
    layer, rule, context, images = built("fa", MlpSettings(width=6, depth=3))
    rule.loss(layer, rule.forward(layer, {"x": images}, context), context).backward()
    linears = [inner.get_submodule("linear") for inner in layer.inner]
    classifier = rule.get_submodule("classifier")
    inputs, hidden = forward(images, linears)
    error = output_error(hidden, classifier, context.labels)
    assert_gradients(classifier, error, hidden)
    above = classifier
    for linear, entered, left in reversed(list(zip(linears, inputs, [*inputs[1:], hidden], strict=True))):
        error = (error @ above.get_buffer("feedback")) * (left > 0)
        assert_gradients(linear, error, entered)
        above = linear


@pytest.mark.parametrize("net", NETS)
def test_fa_replaces_every_linear_layer_and_convolution(net: str) -> None:
    layer = LocalLayer(spec_of("fa", NETS[net]), 0, CPU)
    modules = [*layer.net.modules(), *layer.rule.modules()]
    assert not [module for module in modules if isinstance(module, nn.Linear | nn.Conv2d)]
    feedback = [module for module in modules if isinstance(module, FeedbackLinear | FeedbackConv2d)]
    plain = LocalLayer(spec_of("bp", NETS[net]), 0, CPU)
    replaced = [*plain.net.modules(), *plain.rule.modules()]
    assert len(feedback) == sum(isinstance(module, nn.Linear | nn.Conv2d) for module in replaced)
    assert not any(torch.equal(module.weight, module.feedback) for module in feedback)


# ---------------------------------------------------------------------------------------------------------------------
# Direct feedback


def forward(images: Tensor, linears: Sequence[nn.Module]) -> tuple[list[Tensor], Tensor]:
    """Each linear layer's input in a perceptron with ReLU, and the last layer's output."""
    inputs, x = [], images.flatten(1)
    for linear in linears:
        inputs.append(x.detach())
        x = F.relu(x @ linear.get_parameter("weight").T + linear.get_parameter("bias"))
    return inputs, x.detach()


def output_error(hidden: Tensor, classifier: nn.Module, labels: Tensor) -> Tensor:
    """e of the batch's mean: (softmax − one-hot) / N."""
    scores = hidden @ classifier.get_parameter("weight").T + classifier.get_parameter("bias")
    return (scores.softmax(dim=1) - F.one_hot(labels, NUM_CLASSES)).detach() / len(labels)


def assert_gradients(linear: nn.Module, error: Tensor, entered: Tensor) -> None:
    torch.testing.assert_close(linear.get_parameter("weight").grad, error.T @ entered)
    torch.testing.assert_close(linear.get_parameter("bias").grad, error.sum(dim=0))


@pytest.mark.parametrize("kind", ["dfa", "drtp"])
def test_direct_feedback_on_a_perceptron_is_the_formula(kind: Feedback) -> None:
    layer, rule, context, images = built(kind, MlpSettings(width=6, depth=3))
    loss = rule.loss(layer, rule.forward(layer, {"x": images}, context), context)
    loss.backward()
    linears = [inner.get_submodule("linear") for inner in layer.inner]
    classifier = rule.get_submodule("classifier")
    inputs, hidden = forward(images, linears)
    error = output_error(hidden, classifier, context.labels)
    assert_gradients(classifier, error, hidden)
    projected = F.one_hot(context.labels, NUM_CLASSES).double() / 5 if kind == "drtp" else error
    for index, (linear, entered, left) in enumerate(zip(linears, inputs, [*inputs[1:], hidden], strict=True)):
        assert_gradients(linear, (projected @ rule.get_buffer(f"feedback_{index}")) * (left > 0), entered)


@pytest.mark.parametrize("kind", ["dfa", "drtp"])
@pytest.mark.parametrize("net", WITHOUT_DROPOUT)
def test_within_a_layer_the_derivative_is_exact(kind: Feedback, net: str) -> None:
    layer, rule, context, images = built(kind, WITHOUT_DROPOUT[net])
    outputs = rule.forward(layer, {"x": images}, context)
    rule.loss(layer, outputs, context).backward()
    scores = rule.scores(layer, outputs, context)
    assert scores is not None
    targets = F.one_hot(context.labels, NUM_CLASSES).double()
    projected = targets if kind == "drtp" else scores.detach().softmax(dim=1) - targets
    x = images
    for index, inner in enumerate(layer.inner):
        y = inner(x)
        error = (projected / 5 @ rule.get_buffer(f"feedback_{index}")).view_as(y)
        want = torch.autograd.grad(y, list(inner.parameters()), error)
        for parameter, gradient in zip(inner.parameters(), want, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
        x = y.detach()


@pytest.mark.parametrize("kind", ["dfa", "drtp"])
def test_feedback_matrices_are_uniform_and_as_large_as_stated(kind: Feedback) -> None:
    rule = built(kind, ConvSettings(channels=(4, 6)))[1]
    for index, units in enumerate((4 * 14 * 14, 6 * 7 * 7)):
        matrix = rule.get_buffer(f"feedback_{index}")
        assert matrix.shape == (NUM_CLASSES, units)
        assert matrix.abs().max() <= units**-0.5
        assert matrix.std().item() == pytest.approx((3 * units) ** -0.5, rel=0.1)


# ---------------------------------------------------------------------------------------------------------------------
# Every baseline on every net


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", NETS)
def test_every_parameter_learns_and_no_feedback_weight_does(kind: Feedback, net: str) -> None:
    layer = LocalLayer(spec_of(kind, NETS[net]), 0, CPU)
    begun = layer.weights()
    train(layer, batches(3))
    ended = layer.weights()
    fixed = [name for name in begun if "feedback" in name]
    assert bool(fixed) == (kind != "bp")
    assert all(torch.equal(begun[name], ended[name]) for name in fixed)
    learned = [f"layers.0.net.{name}" for name, _ in layer.net.named_parameters()]
    learned += [f"layers.0.rule.{name}" for name, _ in layer.rule.named_parameters()]
    assert not [name for name in learned if torch.equal(begun[name], ended[name])]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_cross_entropy_in_training_and_evaluation(kind: Feedback) -> None:
    layer, rule, context, images = built(kind, MlpSettings(width=6, depth=3))
    outputs = rule.forward(layer, {"x": images}, context)
    scores = rule.scores(layer, outputs, context)
    assert scores is not None
    want = F.cross_entropy(scores, context.labels)
    assert torch.equal(rule.loss(layer, outputs, context), want)
    assert torch.equal(rule.loss(layer, outputs, replace(context, where=BatchPosition())), want)


@pytest.mark.parametrize("net", ["MLP", "conv", "ViT"])
def test_all_baselines_start_from_the_same_weights(net: str) -> None:
    begun = {kind: LocalLayer(spec_of(kind, NETS[net]), 0, CPU).weights() for kind in KINDS}
    for kind in KINDS:
        shared = {name: value for name, value in begun[kind].items() if "feedback" not in name}
        assert shared.keys() == begun["bp"].keys()
        assert all(torch.equal(value, begun["bp"][name]) for name, value in shared.items())


@pytest.mark.parametrize("kind", ["fa", "dfa", "drtp"])
def test_feedback_weights_belong_to_the_seed(kind: Feedback) -> None:
    def drawn(seed: int) -> dict[str, Tensor]:
        weights = LocalLayer(spec_of(kind, NETS["conv"], seed=seed), 0, CPU).weights()
        return {name: value for name, value in weights.items() if "feedback" in name}

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not any(torch.equal(value, other[name]) for name, value in first.items())


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_belongs_to_seed_and_step(kind: Feedback) -> None:
    first, second = (LocalLayer(spec_of(kind, NETS["VGG8b"]), 0, CPU) for _ in range(2))
    torch.manual_seed(5)
    losses = train(first, batches(2))
    torch.manual_seed(6)
    assert all(torch.equal(a, b) for a, b in zip(losses, train(second, batches(2)), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", ["MLP", "conv", "ViT"])
def test_reduced_precision_learns_in_the_same_direction(kind: Feedback, net: str) -> None:
    """Gradients of bfloat16 arithmetic point where those of float32 point."""
    full = LocalLayer(spec_of(kind, WITHOUT_DROPOUT[net]), 0, CPU)
    half = LocalLayer(spec_of(kind, WITHOUT_DROPOUT[net], precision="bf16"), 0, CPU)
    for layer in (full, half):
        train(layer, batches(1, size=16))
    for whole, part in ((full.net, half.net), (full.rule, half.rule)):
        pairs = list(zip(whole.parameters(), part.parameters(), strict=True))
        ours = torch.cat([b.grad.flatten() for _, b in pairs if b.grad is not None])
        theirs = torch.cat([a.grad.flatten() for a, _ in pairs if a.grad is not None])
        assert ours.dtype == torch.float32
        assert F.cosine_similarity(ours, theirs, dim=0) > 0.98


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_network_holds_feedback_weights_and_predicts(kind: Feedback, tmp_path: Path) -> None:
    spec = spec_of(kind, NETS["conv"])
    layer = LocalLayer(spec, 0, CPU)
    train(layer, batches(3))
    save(tmp_path / "net.safetensors", layer.weights(), card_of(spec))
    network = load(tmp_path / "net.safetensors")
    kept = {name: value for name, value in network.state_dict().items() if "feedback" in name}
    ours = [value for name, value in layer.weights().items() if "feedback" in name]
    assert len(kept) == len(ours) == {"bp": 0, "fa": 4, "dfa": 3, "drtp": 3}[kind]
    assert all(torch.equal(a, b) for a, b in zip(kept.values(), ours, strict=True))
    images = torch.rand(4, *SHAPE)
    normal = (images - 0.5) / 0.25
    layer.net.eval()
    context = StepContext(labels=torch.zeros(4, dtype=torch.int64), where=BatchPosition())
    with torch.no_grad():
        want = layer.rule.scores(layer.net, layer.rule.forward(layer.net, {"x": normal}, context), context)
        torch.testing.assert_close(network(images), want)


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def digits(kind: Feedback, net: NetConfig, **training: Any) -> Settings:
    return build.expand_baseline(
        Settings(
            net=net,
            baseline=kind,
            augment=AugmentSettings(crop_padding=0),
            train=TrainSettings(**{"epochs": 8, "batch_size": 64, **training}),
            pipeline=PipelineSettings(device="cpu"),
        )
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "net", [MlpSettings(width=64, depth=3, norm="after"), ConvSettings(channels=(16, 32, 32))], ids=["FC", "conv"]
)
def test_a_baseline_learns_digits(kind: Feedback, net: NetConfig) -> None:
    result = train_serial(*make_run(digits(kind, net)))
    losses = [(result.history.layers(Kind.TRAIN, epoch) or [])[0].loss for epoch in (0, 7)]
    tested = result.history.layers(Kind.TEST, 0)
    assert tested is not None
    assert losses[1] < 0.5 * losses[0]
    assert (tested[0].accuracy or 0) > 0.75


def test_milestones_and_kept_weights_are_the_settings() -> None:
    spec, dataset = make_run(digits("bp", MlpSettings(width=16, depth=2), epochs=3, milestones=(1,), keep="accuracy"))
    result = train_serial(spec, dataset)
    accuracies = [(result.history.layers(Kind.VALIDATE, epoch) or [])[0].accuracy or 0.0 for epoch in range(3)]
    assert result.best_epoch == accuracies.index(max(accuracies))


def test_a_run_of_the_command_line_is_named_evaluated_exported_and_repeated(tmp_path: Path, capsys: Any) -> None:
    small = ["--data", "digits", "--width", "32", "--depth", "2", "--epochs", "2", "--batch-size", "64"]
    run, again = tmp_path / "run", tmp_path / "again"
    assert main(["cff-mlp-mnist", *small, "--baseline", "dfa", "--device", "cpu", "--run-dir", str(run)]) == 0
    assert "DFA MLP[32 2] on digits" in capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    assert summary["net"] == "DFA MLP[32 2]"
    assert summary["method"] == {"kind": "baseline", "feedback": "dfa", "joined": [], "classifier_norm": False}
    assert (summary["executor"], summary["stages"], len(summary["layers"])) == ("serial", 1, 1)

    assert main(["eval", str(run)]) == 0
    assert f"{summary['test_accuracy']:.2%}" in capsys.readouterr().out
    assert main(["export", str(run), str(tmp_path / "net.safetensors")]) == 0
    assert load(tmp_path / "net.safetensors").card.method == BaselineSettings(feedback="dfa")

    config = ["--config", str(run / "config.json")]
    assert main(["cff-mlp-mnist", *config, "--run-dir", str(again)]) == 0
    repeated = json.loads((again / "summary.json").read_text())
    assert (repeated["net"], repeated["test_accuracy"]) == (summary["net"], summary["test_accuracy"])

    other = tmp_path / "other"
    assert main(["cff-mlp-mnist", *config, "--baseline", "bp", "--run-dir", str(other)]) == 0
    assert json.loads((other / "summary.json").read_text())["net"] == "BP MLP[32 2]"


def test_a_baseline_spells_out_method_head_and_executor() -> None:
    asked = Settings(baseline="fa", train=TrainSettings(keep="accuracy", lr=0.1, milestones=(2,)))
    settled = build.expand_baseline(asked)
    assert settled.method == BaselineSettings(feedback="fa")
    assert (settled.readout.mode, settled.pipeline.executor) == ("none", "serial")
    assert (settled.net, settled.train, settled.data, settled.augment) == (
        asked.net,
        asked.train,
        asked.data,
        asked.augment,
    )
    assert build.expand_baseline(settled) == settled
    checks.check(settled)
    assert settings_module.from_dict(settings_module.to_dict(settled), source="test") == settled


def test_without_a_baseline_settings_stay_as_they_are() -> None:
    settings = Settings(pipeline=PipelineSettings(executor="threads", stages=2))
    assert build.expand_baseline(settings) is settings


@pytest.mark.parametrize(
    ("pipeline", "said"),
    [
        (PipelineSettings(stages=2), ["`stages` 2", "`baseline` drtp", "Use `stages` 1"]),
        (PipelineSettings(stages=0, executor="serial"), ["`stages` 0", "`baseline` drtp"]),
        (PipelineSettings(executor="threads"), ["`executor` threads", "`baseline` drtp", "Use `executor` serial"]),
    ],
)
def test_stages_and_threads_are_refused(pipeline: PipelineSettings, said: list[str]) -> None:
    for settings in (
        Settings(baseline="drtp", pipeline=pipeline),
        Settings(method=BaselineSettings(feedback="drtp"), pipeline=pipeline),
    ):
        with pytest.raises(UserError) as error:
            build.expand_baseline(settings)
        assert all(part in str(error.value) for part in said)


def test_a_mistake_is_named_and_leaves_nothing(tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    assert main(["cff-vit", "--baseline", "bp", "--stages", "3", "--run-dir", str(run)]) == 2
    said = capsys.readouterr().err
    assert "--stages 3" in said
    assert "--baseline bp" in said
    assert len(said.strip().splitlines()) == 1
    with pytest.raises(SystemExit):
        main(["cff-vit", "--baseline", "backprop", "--run-dir", str(run)])
    assert "--baseline" in "".join(capsys.readouterr())
    assert main(["cff-vit", "--baseline", "bp", "--patch", "3", "--run-dir", str(run)]) == 2
    assert "--patch 3" in capsys.readouterr().err
    assert not run.exists()
