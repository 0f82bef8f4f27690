"""Methods with auxiliary nets: losses against double loops, auxiliary nets against tables by hand, what cannot be."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from launch.cli import main
from launch.presets import PRESETS
from pipeline.config.settings import TrainSettings
from pipeline.errors import UserError
from pipeline.methods import (
    Activations,
    AuglocalSettings,
    BatchPosition,
    DglSettings,
    InfoproSettings,
    MethodConfig,
    ModelInfo,
    PredsimSettings,
    Rule,
    StepContext,
)
from pipeline.methods.auglocal import auxiliary_depth, auxiliary_layers
from pipeline.methods.auxiliary import AuxiliaryMethod, AuxiliaryRule
from pipeline.methods.auxiliary_nets import LaterBlocks, pooling
from pipeline.methods.infopro import IMAGE, PROJECTION, RECONSTRUCTION
from pipeline.methods.local_losses import similarities
from pipeline.methods.sgd import SGD
from pipeline.nets import ConvSettings, Layer, MlpSettings, NetConfig, ResnetSettings, VggSettings
from pipeline.nets.chain import LayerChain, even_sizes
from pipeline.nets.whole import WholeLayer

NUM_CLASSES = 5
LABELS = torch.tensor([0, 2, 1, 0, 0, 2, 3])
SHAPE = (3, 12, 10)
NET = ResnetSettings(depth=14, width=4, stem="alone")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
FULL = InfoproSettings(reconstruction_first=5, task_first=0.5, reconstruction_last=1, task_last=0.25)

Net = list[tuple[Layer, Rule]]


def net_of(method: MethodConfig, net: NetConfig = NET, shape: tuple[int, int, int] = SHAPE) -> Net:
    """Every module with its rule, from one seed."""
    torch.manual_seed(1)
    adapted = method.adapt(net.resolve(shape))
    info = ModelInfo(num_layers=adapted.num_layers, num_classes=NUM_CLASSES, mean=MEAN, std=STD)
    layers = [adapted.build(index, shape) for index in range(adapted.num_layers)]
    return [(layer, method.build(index, layer, info)) for index, layer in enumerate(layers)]


def context_of(labels: Tensor = LABELS) -> StepContext:
    return StepContext(labels=labels, where=BatchPosition(training=True))


def pixels_of(count: int = len(LABELS), shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def normalised(pixels: Tensor) -> Tensor:
    return (pixels / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def forward(net: Net, labels: Tensor = LABELS, shape: tuple[int, int, int] = SHAPE) -> list[Activations]:
    """Outputs of every module, one after the other as in a run."""
    context = context_of(labels)
    activations = net[0][1].make_inputs(normalised(pixels_of(len(labels), shape)), context)
    outputs = []
    for layer, rule in net:
        outputs.append(rule.forward(layer, activations, context))
        activations = rule.outputs_to_send(layer, outputs[-1], context)
        assert not any(tensor.requires_grad for tensor in activations.values())
    return outputs


def cross_entropy(scores: Tensor, labels: Sequence[int]) -> float:
    total = 0.0
    for row, label in zip(scores.double().tolist(), labels, strict=True):
        total += math.log(math.fsum(math.exp(score) for score in row)) - row[label]
    return total / len(labels)


def supervised_contrast(projections: Tensor, labels: Sequence[int], temperature: float) -> float:
    """Khosla et al. 2020, L_out, anchor by anchor; one without a positive counts with 0."""
    rows = [[x / math.hypot(*row) for x in row] for row in projections.double().tolist()]
    total = 0.0
    for i, anchor in enumerate(rows):
        powers = {
            a: math.fsum(x * y for x, y in zip(anchor, rows[a], strict=True)) / temperature for a in range(len(rows))
        }
        bottom = math.log(math.fsum(math.exp(power) for a, power in powers.items() if a != i))
        positives = [p for p, label in enumerate(labels) if p != i and label == labels[i]]
        if positives:
            total -= math.fsum(powers[p] - bottom for p in positives) / len(positives)
    return total / len(rows)


def binary_cross_entropy(logits: Tensor, pixels: Tensor) -> float:
    terms = []
    for logit, pixel in zip(logits.double().flatten().tolist(), pixels.flatten().tolist(), strict=True):
        share = 1 / (1 + math.exp(-logit))
        terms.append(-(pixel / 255 * math.log(share) + (1 - pixel / 255) * math.log(1 - share)))
    return math.fsum(terms) / len(terms)


# ---------------------------------------------------------------------------------------------------------------------
# Losses


@pytest.mark.parametrize("task", ["contrast", "predict"])
def test_infopro_s_losses_equal_double_loops(task: Any) -> None:
    """λ_x reconstruction + λ_y contrast or prediction, with λ that go linearly from the first to the last but one."""
    method = InfoproSettings(
        modules=5, task=task, reconstruction_first=5, task_first=0.5, reconstruction_last=1, task_last=0.25
    )
    net, labels = net_of(method), LABELS.tolist()
    outputs = forward(net)
    for (layer, rule), out, (of_image, of_task) in zip(
        net[:-1], outputs[:-1], [(5, 0.5), (11 / 3, 5 / 12), (7 / 3, 1 / 3), (1, 0.25)], strict=True
    ):
        learned = (
            supervised_contrast(out[PROJECTION], labels, 0.07)
            if task == "contrast"
            else cross_entropy(out["scores"], labels)
        )
        expected = of_image * binary_cross_entropy(out[RECONSTRUCTION], pixels_of()) + of_task * learned
        assert rule.loss(layer, out, context_of()).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", [FULL, AuglocalSettings(), DglSettings(), PredsimSettings()], ids=lambda m: m.kind)
def test_the_last_module_learns_by_cross_entropy_of_the_net_s_classifier(method: MethodConfig) -> None:
    net = net_of(method)
    (layer, rule), out = net[-1], forward(net)[-1]
    assert isinstance(rule, AuxiliaryRule)
    assert isinstance(rule.auxiliary, nn.Linear)
    scores = rule.auxiliary(out["x"].mean(dim=(2, 3)))
    assert rule.loss(layer, out, context_of()).item() == pytest.approx(cross_entropy(scores, LABELS.tolist()), rel=1e-5)
    assert torch.equal(out["scores"], scores)


def similarity(vectors: list[list[float]]) -> list[list[float]]:
    centred = [[x - math.fsum(row) / len(row) for x in row] for row in vectors]
    lengths = [math.hypot(*row) for row in centred]
    return [
        [
            math.fsum(x * y for x, y in zip(a, b, strict=True)) / (la * lb)
            for b, lb in zip(centred, lengths, strict=True)
        ]
        for a, la in zip(centred, lengths, strict=True)
    ]


def test_predsim_s_loss_equals_a_double_loop() -> None:
    net, labels = net_of(PredsimSettings(similarity_weight=0.9)), LABELS.tolist()
    (layer, rule), out = net[2], forward(net)[2]
    maps = rule.get_submodule("conv")(out["x"]).flatten(2).double()
    spread = [
        [
            math.sqrt(math.fsum((x - math.fsum(pixels) / len(pixels)) ** 2 for x in pixels) / (len(pixels) - 1))
            for pixels in image
        ]
        for image in maps.tolist()
    ]
    ours = similarity(spread)
    theirs = similarity([[float(z == label) for z in range(NUM_CLASSES)] for label in labels])
    apart = math.fsum((ours[i][j] - theirs[i][j]) ** 2 for i in range(7) for j in range(7)) / 49
    expected = 0.1 * cross_entropy(out["scores"], labels) + 0.9 * apart
    assert rule.loss(layer, out, context_of()).item() == pytest.approx(expected, rel=1e-4)


def test_similarities_have_the_gradient_of_their_value() -> None:
    vectors = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: similarities(x).square().sum(), vectors)


def test_a_map_that_does_not_vary_leaves_no_gradient_that_is_no_number() -> None:
    net = net_of(PredsimSettings())
    layer, rule = net[1]
    nn.init.zeros_(rule.get_parameter("conv.weight"))
    rule.loss(layer, forward(net)[1], context_of()).backward()
    assert all(torch.isfinite(p.grad).all() for p in (*layer.parameters(), *rule.parameters()) if p.grad is not None)


def test_a_batch_without_positives_teaches_no_contrast() -> None:
    labels = torch.arange(NUM_CLASSES)
    net = net_of(InfoproSettings())
    layer, rule = net[0]
    loss = rule.loss(layer, forward(net, labels)[0], context_of(labels))
    loss.backward()
    assert loss.item() == 0
    assert all(not p.grad.any() for p in (*layer.parameters(), *rule.parameters()) if p.grad is not None)


def test_a_module_s_loss_reaches_its_own_parameters_alone() -> None:
    net = net_of(InfoproSettings(modules=3))
    layer, rule = net[1]
    rule.loss(layer, forward(net)[1], context_of()).backward()
    for number, (other, others_rule) in enumerate(net):
        touched = {p.grad is not None for p in (*other.parameters(), *others_rule.parameters())}
        assert touched == {number == 1}


@pytest.mark.parametrize("kind", [InfoproSettings, AuglocalSettings, DglSettings, PredsimSettings])
def test_deep_supervision_is_the_sum_of_all_losses_with_gradients_through_the_whole_net(
    kind: type[AuxiliaryMethod],
) -> None:
    """Against the same modules chained by hand without a cut, from the same seed."""
    values: dict[str, Any] = {"reconstruction_first": 2.0} if kind is InfoproSettings else {}
    ((whole, rule),) = net_of(kind(deep_supervision=True, **values))
    assert isinstance(whole, WholeLayer)
    (outputs,) = forward([(whole, rule)])
    loss = rule.loss(whole, outputs, context_of())
    loss.backward()
    assert rule.scores(whole, outputs, context_of()) is not None

    local = net_of(kind(**values))
    for (layer, own), inner, inner_rule in zip(local, whole.inner, rule.get_submodule("rules").children(), strict=True):
        layer.load_state_dict(inner.state_dict())
        own.load_state_dict(inner_rule.state_dict())
    context, total = context_of(), torch.zeros(())
    activations = local[0][1].make_inputs(normalised(pixels_of()), context)
    for layer, own in local:
        assert isinstance(own, AuxiliaryRule)
        made = own.forward(layer, activations, context)
        total = total + own.loss(layer, made, context)
        activations = own.onward(made)
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-6)
    for got, want in zip(whole.parameters(), (p for layer, _ in local for p in layer.parameters()), strict=True):
        assert got.grad is not None
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# The image as a second stream


def test_the_image_travels_as_bytes_and_as_far_as_there_are_decoders() -> None:
    net = net_of(FULL)  # seven modules: six decoders, and nothing to reconstruct for the last
    inputs = net[0][1].make_inputs(normalised(pixels_of()), context_of())
    assert torch.equal(inputs[IMAGE], pixels_of())
    outputs = forward(net)
    sent = [rule.outputs_to_send(layer, out, context_of()) for (layer, rule), out in zip(net, outputs, strict=True)]
    assert [IMAGE in each for each in sent] == [True] * 5 + [False] * 2
    assert all(torch.equal(each[IMAGE], pixels_of()) for each in sent[:5])


def test_without_reconstruction_no_image_travels() -> None:
    net = net_of(InfoproSettings())
    assert set(net[0][1].make_inputs(normalised(pixels_of()), context_of())) == {"x"}
    assert not [name for _, rule in net for name, _ in rule.named_parameters() if "decoder" in name]


def test_readouts_that_learn_afterwards_need_no_auxiliary_net() -> None:
    net = net_of(FULL)
    context = StepContext(labels=LABELS, where=BatchPosition(for_readouts=True))
    layer, rule = net[0]
    assert set(rule.forward(layer, rule.make_inputs(normalised(pixels_of()), context), context)) == {"x"}


# ---------------------------------------------------------------------------------------------------------------------
# Modules and auxiliary nets

CIFAR = (3, 32, 32)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_modules_are_neighbours_as_infopro_s_program_divides_resnet_110() -> None:
    """55 layers, the first convolution among them; its table of 4, 8 and 16 modules, counted by hand."""
    net = ResnetSettings(depth=110, stem="alone").resolve(CIFAR)
    assert net.num_layers == 55
    assert InfoproSettings(modules=4).module_sizes(net) == (13, 14, 14, 14)
    assert InfoproSettings(modules=8).module_sizes(net) == (6, 7, 7, 7, 7, 7, 7, 7)
    assert InfoproSettings(modules=16).module_sizes(net) == (*[3] * 9, *[4] * 7)
    assert even_sizes(55, 55) == InfoproSettings().module_sizes(net) == (1,) * 55


def test_modules_compute_what_their_layers_do() -> None:
    net = NET.resolve(SHAPE)
    modules = net_of(InfoproSettings(modules=3))
    for layer, rule in modules:
        layer.eval(), rule.eval()
    x = normalised(pixels_of())
    plain = [layer for module, _ in modules if isinstance(module, LayerChain) for layer in module.inner]
    assert len(plain) == net.num_layers == 7
    by_layer, by_module = x, x
    for layer in plain:
        by_layer = layer(by_layer)
    for module, _ in modules:
        by_module = module(by_module)
    assert torch.equal(by_layer, by_module)


@pytest.mark.parametrize(
    ("depth", "num_layers", "shrink", "by_hand"),
    [
        (2, 16, 0.5, [2] * 13),
        (3, 16, 0.5, [3] * 6 + [2] * 6),
        (5, 16, 0.5, [5, 5, 5, 4, 4, 4, 4, 3, 3, 3]),
        (3, 16, 0.0, [3] * 12),
        (3, 8, 1.0, [3, 2, 2, 1]),  # round to even: 3, 2⅓, 1⅔, 1
        (1, 5, 0.5, [1] * 3),
        (2, 4, 0.5, [2]),
    ],
)
def test_auxiliary_nets_get_shallower_by_the_papers_rule(
    depth: int, num_layers: int, shrink: float, by_hand: list[int]
) -> None:
    modules = num_layers - depth
    assert [auxiliary_depth(index, modules, depth, shrink) for index in range(modules - 1)] == by_hand


def test_auxiliary_nets_take_later_layers_at_even_distances() -> None:
    """ResNet-32's 16 layers; round to even, as the program's Python rounds 7.5 to 8 and 8.5 to 8."""
    by_hand = {0: [8, 15], 1: [8, 15], 2: [8, 15], 3: [9, 15], 4: [10, 15], 5: [10, 15], 8: [12, 15], 12: [14, 15]}
    assert {layer: auxiliary_layers(layer, 16, 2) for layer in by_hand} == by_hand
    assert auxiliary_layers(0, 16, 3) == [5, 10, 15]
    assert auxiliary_layers(12, 16, 3) == [13, 14, 15]


def test_auxiliary_nets_have_the_shapes_of_those_layers() -> None:
    """ResNet-32: 16 channels in layers 0-5, 32 in 6-10, 64 in 11-15. A block halves the image at most once."""
    net = net_of(AuglocalSettings(), ResnetSettings(stem="alone"), CIFAR)
    assert len(net) == 14
    assert parameters(net[-1][0]) == 3 * (2 * 64 * 64 * 9 + 4 * 64)  # the last three blocks learn together
    shapes = {}
    for index in (0, 5, 10, 12):
        rule = net[index][1]
        assert isinstance(rule, AuxiliaryRule)
        assert isinstance(rule.auxiliary, LaterBlocks)
        x, found = torch.zeros(2, *{0: (16, 32, 32), 5: (16, 32, 32), 10: (32, 16, 16), 12: (64, 8, 8)}[index]), []
        for block in rule.auxiliary.blocks:
            x = block(x)
            found.append(tuple(x.shape[1:]))
        shapes[index] = found
    assert shapes == {
        0: [(32, 16, 16), (64, 8, 8)],
        5: [(32, 16, 16), (64, 8, 8)],
        10: [(64, 8, 8), (64, 8, 8)],
        12: [(64, 8, 8), (64, 8, 8)],
    }


def test_a_single_block_that_cannot_halve_twice_and_its_batch_norm() -> None:
    """ResNet-32 with one block: from 32×32 pixels of 16 channels to 64 channels, 16×16."""
    _, rule = net_of(AuglocalSettings(aux_depth=1), ResnetSettings(stem="alone"), CIFAR)[0]
    assert isinstance(rule, AuxiliaryRule)
    assert isinstance(rule.auxiliary, LaterBlocks)
    assert rule.auxiliary.blocks(torch.zeros(2, 16, 32, 32)).shape == (2, 64, 16, 16)
    assert parameters(rule.auxiliary.norm) == 2 * 64


def test_infopro_s_heads_have_the_parameters_of_the_papers_layers() -> None:
    """1c2f: 16→32 and 32→64 with stride 2, 64→64 with stride 1; then 128 hidden units and 128 outputs."""
    net = net_of(FULL, ResnetSettings(stem="alone"), CIFAR)

    def head(inputs: int, outputs: int) -> int:
        return inputs * outputs * 9 + 2 * outputs + (outputs + 1) * 128 + 129 * 128

    def decoder(inputs: int) -> int:
        return inputs * 12 * 9 + 2 * 12 + 12 * 3 * 9 + 3

    for index, inputs, outputs in ((0, 16, 32), (5, 16, 32), (6, 32, 64), (11, 64, 64), (14, 64, 64)):
        assert parameters(net[index][1]) == head(inputs, outputs) + decoder(inputs), index
    strides = [rule.get_submodule("auxiliary.conv.conv").stride for _, rule in net[:-1]]
    assert strides == [(2, 2)] * 11 + [(1, 1)] * 4


@pytest.mark.parametrize(("data", "values", "reported"), [("cifar10", 2048, 1_840_000), ("mnist", 1024, 918_000)])
def test_ll_cont_s_heads_have_the_parameters_that_choi_et_al_2024_count(data: str, values: int, reported: int) -> None:
    """Seven of theirs, for the fully connected layer as well, are those that they report."""
    method = PRESETS["infopro-vgg8b-cont"].settings_for(data).method
    heads = [parameters(rule) for _, rule in net_of(method, VggSettings(), CIFAR)[:-1]]
    assert heads == 6 * [values * 128 + 128]
    assert 7 * heads[0] == pytest.approx(reported, rel=0.003)


@pytest.mark.parametrize("method", [FULL, AuglocalSettings(), DglSettings(), PredsimSettings()], ids=lambda m: m.kind)
def test_every_convolution_begins_as_in_the_papers_programs(method: MethodConfig) -> None:
    """Those of the auxiliary nets and the first one, which is a layer of its own, like those of the residual blocks."""
    convolutions = [
        part
        for pair in net_of(method, ResnetSettings(depth=14, width=32, stem="alone"))
        for module in pair
        for part in module.modules()
        if isinstance(part, nn.Conv2d)
    ]
    assert len(convolutions) > 13, "more than the net's own"
    for conv in convolutions:
        spread = conv.weight.std().item() * math.sqrt(conv.weight[0].numel() / 2)
        assert spread == pytest.approx(1, abs=0.1), conv


def test_a_linear_head_projects_maps_that_are_averaged_and_what_a_readout_sees_of_others() -> None:
    layer, rule = net_of(InfoproSettings(head="linear", pooled_width=64), ResnetSettings(stem="alone"), CIFAR)[0]
    assert isinstance(rule, AuxiliaryRule)
    maps = torch.randn(2, 16, 32, 32)
    expected = rule.auxiliary.get_submodule("linear")(F.avg_pool2d(maps, (16, 16)).flatten(1))
    torch.testing.assert_close(rule.behind(layer, maps)[PROJECTION], expected)
    net = net_of(InfoproSettings(head="linear"), MlpSettings(width=24, depth=3))
    assert parameters(net[0][1]) == 25 * 128
    assert forward(net)[0][PROJECTION].shape == (7, 128)


def test_infopro_trains_nets_without_feature_maps_by_their_linear_maps_alone() -> None:
    net = net_of(InfoproSettings(), MlpSettings(width=24, depth=3))
    assert parameters(net[0][1]) == 25 * 128 + 129 * 128
    assert forward(net)[0][PROJECTION].shape == (7, 128)


def test_dgl_s_poolings_are_the_adaptive_ones_of_its_program() -> None:
    net = net_of(DglSettings(), ResnetSettings(stem="alone"), CIFAR)
    for index, channels, side in ((0, 16, 32), (7, 32, 16), (13, 64, 8)):
        _, rule = net[index]
        assert isinstance(rule, AuxiliaryRule)
        rule.eval()
        x = torch.randn(2, channels, side, side)
        convs, linears, last = (rule.auxiliary.get_submodule(name) for name in ("convs", "linears", "last"))
        quarter = F.adaptive_avg_pool2d(x, side // 4)
        expected = last(linears(F.adaptive_avg_pool2d(convs(quarter), 2).flatten(1)))
        torch.testing.assert_close(rule.auxiliary(x), expected)


@pytest.mark.parametrize(
    ("features", "grid", "kernel", "left"),
    [
        (16, (32, 32), (8, 4), (4, 8)),  # 16,384 values, rows first: 8,192 4,096 2,048 1,024 512
        (32, (16, 16), (4, 4), (4, 4)),
        (64, (8, 8), (4, 2), (2, 4)),
        (600, (4, 4), (4, 4), (1, 1)),
        (8, (8, 8), (1, 1), (8, 8)),
        (32, (7, 5), (2, 2), (4, 3)),
    ],
)
def test_predsim_s_pooling_leaves_at_most_512_values(
    features: int, grid: tuple[int, int], kernel: tuple[int, int], left: tuple[int, int]
) -> None:
    assert pooling(features, grid, most=512) == (kernel, left)


@pytest.mark.parametrize("method", [FULL, AuglocalSettings(), DglSettings(), PredsimSettings()], ids=lambda m: m.kind)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 11, 6)])
def test_any_image_size_can_be_learned(method: MethodConfig, shape: tuple[int, int, int]) -> None:
    net = net_of(method, NET, shape)
    info = [rule for _, rule in net if isinstance(rule, AuxiliaryRule)]
    assert len(info) == len(net)
    pixels = pixels_of(shape=shape)[:, : shape[0]]
    context = context_of()
    if shape[0] == 1:  # grey images have a mean of their own
        net = [
            (layer, method.build(i, layer, ModelInfo(num_layers=len(net), num_classes=5)))
            for i, (layer, _) in enumerate(net)
        ]
    activations = net[0][1].make_inputs(pixels / 255, context)
    for layer, rule in net:
        out = rule.forward(layer, activations, context)
        assert torch.isfinite(rule.loss(layer, out, context))
        activations = rule.outputs_to_send(layer, out, context)


# ---------------------------------------------------------------------------------------------------------------------
# Optimizer and schedule


def test_sgd_learns_the_bits_of_torch_s() -> None:
    weights = [nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(2)]
    ours, torchs = (
        kind([weight], lr=1e-2, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True)
        for kind, weight in zip((SGD, torch.optim.SGD), weights, strict=True)
    )
    for _ in range(4):
        for weight, optimizer in zip(weights, (ours, torchs), strict=True):
            optimizer.zero_grad()
            (weight.cumsum(1) ** 2).sum().backward()
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
    assert torch.equal(*weights)
    assert ours.state_dict()["param_groups"] == torchs.state_dict()["param_groups"]


def test_learning_rates_follow_a_cosine_after_a_linear_beginning() -> None:
    train = TrainSettings(epochs=8, lr_schedule="cosine", warmup_epochs=1)
    by_hand = [0.5, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381]  # (1 + cos(π e/8))/2, the first one halved
    assert [train.lr_factor(epoch) for epoch in range(8)] == pytest.approx(by_hand, abs=1e-4)
    falls = TrainSettings(epochs=8, milestones=(4,), lr_decay=0.1, warmup_epochs=3)
    assert [falls.lr_factor(epoch) for epoch in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 0.1, 0.1])


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be

DIGITS = ["--data", "digits", "--depth", "14", "--width", "4", "--batch-size", "64", "--executor", "serial"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ["auglocal-resnet32", *DIGITS, "--aux-depth", "6"],
            "--aux-depth 6: ResNet-14, width 4 has 7 layers, and one that learns by itself needs 7 behind it. Give",
        ),
        (["auglocal-resnet32", *DIGITS, "--aux-depth", "0"], "--aux-depth 0: must be at least 1."),
        (["auglocal-resnet32", *DIGITS, "--aux-shrink", "2"], "--aux-shrink 2.0: a share from 0 to 1"),
        (
            ["infopro-resnet32", *DIGITS, "--modules", "8"],
            "--modules 8: ResNet-14, width 4 has 7 layers, and a module has at least one. Give at most --modules 7, or",
        ),
        (["dgl-resnet32", *DIGITS, "--modules", "1"], "One module is backpropagation: use --baseline bp."),
        (
            ["infopro-resnet32", *DIGITS, "--task-first", "0", "--reconstruction-first", "0"],
            "--reconstruction-first 0, --task-first 0: a module would learn nothing. Give one of them.",
        ),
        (["infopro-resnet32", *DIGITS, "--task-last", "-1"], "--task-last -1.0: must be a number of at least 0."),
        (["infopro-resnet32", *DIGITS, "--temperature", "0"], "--temperature 0.0: must be a number above 0"),
        (["predsim-resnet32", *DIGITS, "--similarity-weight", "1.5"], "--similarity-weight 1.5: a share from 0 to 1."),
        (["dgl-resnet32", *DIGITS, "--sgd-momentum", "1"], "--sgd-momentum 1.0: must be at least 0 and below 1."),
        (
            ["dgl-resnet32", *DIGITS, "--milestones", "3"],
            "--lr-schedule cosine: learning rates fall along a cosine, not at --milestones. Leave --milestones out",
        ),
        (
            ["dcl-fc", "--data", "digits", "--batch-size", "64", "--baseline", "bp-deep"],
            "--baseline bp-deep: deep supervision takes a method's auxiliary nets, and dcl has none. These have: aug",
        ),
        (
            ["dgl-resnet32", *DIGITS[:-2], "--baseline", "bp-deep", "--stages", "2"],
            "--stages 2 with --baseline bp-deep: the error of the whole net's output teaches every layer",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(command: list[str], said: str, capsys: Any) -> None:
    assert main([*command, "--dry-run"]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert len(printed.strip().splitlines()) == 1


FC = MlpSettings(width=24, depth=3)


@pytest.mark.parametrize(
    ("method", "net", "said"),
    [
        (
            FULL,
            FC,
            "MLP[24 3]: reconstruction enlarges feature maps, and module 1 of 3 does not end with feature maps.",
        ),
        (DglSettings(), FC, "MLP[24 3]: dgl's auxiliary nets pool feature maps, and module 1 of 3"),
        (PredsimSettings(), FC, "predsim compares feature maps"),
        (AuglocalSettings(), VggSettings(), "It trains these nets: conv, resnet."),
        (AuglocalSettings(), FC, "It trains these nets: conv, resnet."),
    ],
    ids=lambda value: value.kind if isinstance(value, MethodConfig) else "",
)
def test_a_net_that_a_method_cannot_train_is_refused_with_those_that_it_can(
    method: MethodConfig, net: NetConfig, said: str
) -> None:
    def ask() -> None:
        method.adapt(net)
        method.check_data(net, SHAPE, NUM_CLASSES)

    with pytest.raises(UserError, match=re.escape(said)):
        ask()


def test_auglocal_trains_nets_of_plain_convolutions() -> None:
    net = net_of(AuglocalSettings(aux_depth=1), ConvSettings(channels=(4, 6, 8, 8), first_padding=1))
    assert len(net) == 3
    assert forward(net)[0]["scores"].shape == (7, NUM_CLASSES)
