"""CaFo: least squares against numpy, sparsemax against its definition, which weights stay, how blocks predict."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import RunError, UserError
from pipeline.layers.layer import LocalLayer
from pipeline.methods import BatchPosition, CafoSettings, StepContext
from pipeline.methods.cafo import VOTES, ClosedFormRule, sparsemax, sparsemax_loss
from pipeline.nets import CascadeSettings, ConvSettings, MlpSettings, NetConfig, VitSettings
from tests.support import CPU, tiny_spec

SHAPE, NUM_CLASSES = (1, 8, 8), 3
CASCADE = CascadeSettings(channels=(4, 6))
LEARNING, WATCHED = BatchPosition(training=True), BatchPosition()
Predictor = Literal["closed-form", "cross-entropy", "sparsemax"]
EVERY: tuple[Predictor, ...] = ("closed-form", "cross-entropy", "sparsemax")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Images (10, …) and labels, of the last batch fewer."""
    sizes = [10] * (count - 1) + [7]
    return [
        (numbers(size, *SHAPE, seed=seed), torch.arange(size) * (seed + 1) % NUM_CLASSES)
        for seed, size in enumerate(sizes)
    ]


def layers_of(net: NetConfig = CASCADE, predictor: Predictor = "closed-form", ridge: float = 1e-3) -> list[LocalLayer]:
    spec = tiny_spec(net=net, method=CafoSettings(predictor=predictor, ridge=ridge), lr=1e-2)
    return [LocalLayer(spec, index, CPU) for index in range(spec.num_layers)]


def trained(layers: list[LocalLayer], epochs: int = 1) -> list[list[Tensor]]:
    """Trains on every batch; what each layer's predictor saw, in float64."""
    seen: list[list[Tensor]] = [[] for _ in layers]
    for _ in range(epochs):
        for number, (images, labels) in enumerate(batches()):
            activations = layers[0].make_inputs(images, labels, LEARNING)
            for layer, features in zip(layers, seen, strict=True):
                activations, _ = layer.train(activations, labels, LEARNING)
                features.append(layer.net.readout_input(activations["x"]).double())
                if number == len(batches()) - 1:
                    layer.end_epoch(LEARNING)
    return seen


NETS = pytest.mark.parametrize(
    "net",
    [
        CASCADE,
        MlpSettings(width=16, depth=2),
        VitSettings(dim=8, heads=2, depth=2, patch=2),
        ConvSettings(channels=(4, 6)),
    ],
    ids=["cascade", "mlp", "vit", "conv"],
)


@NETS
def test_the_predictor_solves_the_normal_equations_of_all_images_as_numpy_does_in_float64(net: NetConfig) -> None:
    layers = layers_of(net)
    targets = np.eye(NUM_CLASSES)[torch.cat([labels for _, labels in batches()]).numpy()]
    for layer, features in zip(layers, trained(layers), strict=True):
        x = torch.cat(features).numpy()
        normal = x.T @ x / len(x) + 1e-3 * np.eye(x.shape[1])
        expected = np.linalg.solve(normal, x.T @ targets / len(x))
        found = layer.rule.state_dict()["weight"].double().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
        stacked = np.vstack([x, np.sqrt(1e-3 * len(x)) * np.eye(x.shape[1])])  # ridge as further rows of least squares
        residual, *_ = np.linalg.lstsq(stacked, np.vstack([targets, np.zeros((x.shape[1], NUM_CLASSES))]), rcond=None)
        np.testing.assert_allclose(found, residual, rtol=1e-3, atol=1e-4)


def test_another_epoch_of_the_same_images_changes_nothing_but_rounding() -> None:
    weights = []
    for epochs in (1, 2):
        layers = layers_of(MlpSettings(width=16, depth=2))
        trained(layers, epochs)
        weights.append([layer.rule.state_dict()["weight"] for layer in layers])
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("predictor", EVERY)
def test_a_block_keeps_its_weights_and_its_batch_norm_takes_the_mean_over_all_batches(predictor: Predictor) -> None:
    layers = layers_of(predictor=predictor)
    before = [{name: value.clone() for name, value in layer.net.named_parameters()} for layer in layers]
    trained(layers)
    for layer, weights in zip(layers, before, strict=True):
        assert all(torch.equal(value, weights[name]) for name, value in layer.net.named_parameters())
        assert layer.rule.state_dict()["weight"].any(), "its predictor has learned"
    first = layers[0].net
    assert isinstance(first, nn.Module)
    conv, norm = first.get_submodule("conv"), first.get_submodule("norm")
    with torch.no_grad():
        means = [F.max_pool2d(F.relu(conv(images)), 2).mean(dim=(0, 2, 3)) for images, _ in batches()]
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(dim=0))


@pytest.mark.parametrize("predictor", EVERY)
def test_a_layer_predicts_what_all_layers_up_to_it_say_added_up(predictor: Predictor) -> None:
    layers = layers_of(predictor=predictor)
    trained(layers)
    images, labels = batches()[0]
    activations, x, total = layers[0].make_inputs(images, labels, WATCHED), images, torch.zeros(10, NUM_CLASSES)
    for layer in layers:
        context = StepContext(labels=labels, where=WATCHED)
        layer.net.eval()
        outputs = layer.forward.outputs(activations, context)
        x = layer.net(x)
        linear = x.flatten(1) @ layer.rule.state_dict()["weight"]
        total = total + (sparsemax(linear) if predictor == "sparsemax" else linear.softmax(dim=1))
        scores = layer.rule.scores(layer.net, outputs.own, context)
        assert scores is not None
        torch.testing.assert_close(scores, total)
        activations = layer.forward.to_send(outputs, context, for_readouts=False)
        assert torch.equal(activations[VOTES], scores)
    assert torch.allclose(total.sum(dim=1), torch.tensor(2.0)), "probabilities of two blocks"


def test_votes_travel_in_evaluation_alone() -> None:
    first = layers_of()[0]
    images, labels = batches()[0]
    passed, _ = first.train(first.make_inputs(images, labels, LEARNING), labels, LEARNING)
    assert passed.keys() == {"x"}


def test_what_is_added_up_is_in_checkpoints_and_not_in_the_trained_network() -> None:
    layer, again = layers_of()[0], layers_of()[0]
    images, labels = batches()[0]
    for _ in range(2):
        layer.train(layer.make_inputs(images, labels, LEARNING), labels, LEARNING)
    snapshot = layer.snapshot()
    assert {name for name in snapshot.tensors if name.startswith("collected.")} == {
        "collected.products", "collected.label_products", "collected.count"
    }  # fmt: skip
    assert not any("product" in name or "count" in name for name in layer.rule.state_dict())
    again.load_snapshot(snapshot)
    layer.end_epoch(LEARNING)
    again.end_epoch(LEARNING)
    assert torch.equal(layer.rule.state_dict()["weight"], again.rule.state_dict()["weight"])


def test_products_that_no_ridge_makes_solvable_end_the_run_by_name() -> None:
    rule = layers_of(MlpSettings(width=16, depth=1), ridge=1e-300)[0].rule
    assert isinstance(rule, ClosedFormRule)
    rule.products, rule.label_products = torch.zeros(16, 16).double(), torch.zeros(16, NUM_CLASSES).double()
    rule.products -= 1  # as rounding may leave it: no positive diagonal
    rule.count += 1
    with pytest.raises(RunError, match=r"`ridge` 1e-300: .* Give a larger `ridge`"):
        rule.end_epoch()


# ---------------------------------------------------------------------------------------------------------------------
# Sparsemax


def nearest_on_simplex(scores: list[float]) -> list[float]:
    """By trying every size of the support."""
    ordered = sorted(scores, reverse=True)
    sizes = [k for k in range(1, len(scores) + 1) if 1 + k * ordered[k - 1] > sum(ordered[:k])]
    limit = (sum(ordered[: sizes[-1]]) - 1) / sizes[-1]
    return [max(0.0, score - limit) for score in scores]


def test_sparsemax_is_the_nearest_point_of_the_simplex() -> None:
    scores = 2 * numbers(20, 5).double()
    found = sparsemax(scores)
    for row, each in zip(found, scores.tolist(), strict=True):
        assert row.tolist() == pytest.approx(nearest_on_simplex(each), abs=1e-12)
    assert torch.allclose(found.sum(dim=1), torch.ones(20).double())
    assert (found == 0).any()


def test_sparsemaxs_loss_has_the_gradient_sparsemax_minus_one_hot_and_ends_at_zero() -> None:
    scores = 2 * numbers(20, 5).double()
    scores.requires_grad_()
    labels = torch.arange(20) % 5
    loss = sparsemax_loss(scores, labels)
    (gradient,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(20 * gradient, sparsemax(scores) - F.one_hot(labels, 5))
    assert torch.autograd.gradcheck(lambda s: sparsemax_loss(s, labels), (scores,))
    assert sparsemax_loss(10.0 * F.one_hot(labels, 5), labels).item() == pytest.approx(0.0)


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


def test_features_too_many_for_least_squares_are_refused_with_what_else_there_is() -> None:
    with pytest.raises(UserError, match=r"16,384.*Use `predictor` cross-entropy"):
        CafoSettings().check_data(CascadeSettings(), (3, 64, 64), 10)
    CafoSettings(predictor="cross-entropy").check_data(CascadeSettings(), (3, 64, 64), 10)
    with pytest.raises(UserError, match=r"`ridge` 0: must be a number above 0"):
        CafoSettings(ridge=0).check()


def test_blocks_that_an_image_cannot_be_halved_by_are_refused() -> None:
    with pytest.raises(UserError, match=r"8×8 pixels can be halved 3 times\. Give fewer blocks"):
        CascadeSettings(channels=(4, 4, 4, 4)).resolve(SHAPE)
    with pytest.raises(UserError, match="one number of at least 1 for each block"):
        CascadeSettings(channels=()).resolve(SHAPE)
