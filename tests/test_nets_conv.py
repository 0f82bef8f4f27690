"""Convolutional nets against plain torch modules and the papers' parameter counts: conv256, VGG8b, ResNet-32."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.nets import NETS, ConvSettings, Dropout, Layer, NetConfig, ResnetSettings, Shape, VggSettings
from tests.support_nets import images_of, layers_of, num_parameters, take_over

MNIST, CIFAR, STL = (1, 28, 28), (3, 32, 32), (3, 96, 96)
CONV512 = ConvSettings(channels=(64, 256, 512))
THIN: list[NetConfig] = [
    ConvSettings(channels=(4, 6, 8)),
    VggSettings(scale=1 / 64, dropout=0.0),
    ResnetSettings(depth=14, width=4),
]


def plain_conv(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, padding: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def assert_equal_in_training_and_after(layers: list[Layer], plain: list[nn.Module], shape: Shape) -> None:
    """Same outputs in training, where batch norm uses the batch, and then in eval, where it uses what it saw."""
    for ours, theirs in zip(layers, plain, strict=True):
        take_over(theirs, ours)
    for count in (4, 6):
        x = y = images_of(shape, count)
        for ours, theirs in zip(layers, plain, strict=True):
            x, y = ours.train()(x), theirs.train()(y)
            assert torch.equal(x, y)
    x = y = images_of(shape, 5)
    for ours, theirs in zip(layers, plain, strict=True):
        x, y = ours.eval()(x), theirs.eval()(y)
        assert torch.equal(x, y)


# ---------------------------------------------------------------------------------------------------------------------
# conv256 and conv512


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("shape", [MNIST, (2, 9, 14)])
def test_conv_net_equals_plain_modules(shape: Shape, padding: int) -> None:
    net = ConvSettings(channels=(4, 6, 8), first_padding=padding)  # type: ignore[arg-type]
    plain: list[nn.Module] = [
        plain_conv(shape[0], 4, padding=padding),
        plain_conv(4, 6, stride=2),
        plain_conv(6, 8, stride=2),
    ]
    assert_equal_in_training_and_after(layers_of(net, shape), plain, shape)


@pytest.mark.parametrize(
    ("shape", "padding", "grids"),
    [
        (MNIST, 0, [(26, 26), (13, 13), (7, 7)]),
        (CIFAR, 0, [(30, 30), (15, 15), (8, 8)]),
        (CIFAR, 1, [(32, 32), (16, 16), (8, 8)]),
        (STL, 0, [(94, 94), (47, 47), (24, 24)]),
    ],
)
def test_conv512_has_the_grids_of_the_papers(shape: Shape, padding: int, grids: list[tuple[int, int]]) -> None:
    net = ConvSettings(channels=(64, 256, 512), first_padding=padding)  # type: ignore[arg-type]
    with torch.device("meta"):
        assert [net.build(index, shape).grid for index in range(3)] == grids


@pytest.mark.parametrize(
    ("net", "shape", "classes", "published"),
    [
        (ConvSettings(), MNIST, 10, "151.2K"),
        (ConvSettings(), CIFAR, 10, "152.4K"),
        (ConvSettings(), CIFAR, 100, "175.4K"),
        (CONV512, CIFAR, 10, "1336K"),
        (CONV512, CIFAR, 100, "1382K"),
    ],
)
def test_conv_nets_have_the_parameters_of_cfl(net: ConvSettings, shape: Shape, classes: int, published: str) -> None:
    """Anonymous 2023, Table 1, BP rows: convolutions without bias and, to the digit, a head without one.

    conv512 on MNIST is 1334.5K, which the table has as 1.335M.
    """
    thousands = (num_parameters(net, shape) + net.channels[-1] * classes) / 1000
    digits = len(published.partition(".")[2].rstrip("K"))
    assert f"{thousands:.{digits}f}K" == published


def test_conv256_with_dictionary_and_biased_head_has_the_parameters_of_cfl() -> None:
    """Anonymous 2023, Table 1, rows of CFL conv256: 153.8K, 155K, 201.1K."""
    for shape, classes, published in ((MNIST, 10, 153.8), (CIFAR, 10, 155.0), (CIFAR, 100, 201.1)):
        dictionary, head = 256 * classes, 256 * classes + classes
        total = num_parameters(ConvSettings(), shape) + dictionary + head
        assert total / 1000 == pytest.approx(published, abs=0.05)


# ---------------------------------------------------------------------------------------------------------------------
# VGG8b


def plain_vgg(net: VggSettings, shape: Shape, grid: tuple[int, int]) -> list[nn.Module]:
    c = [round(channels * net.scale) for channels in (128, 256, 256, 512, 512, 512)]
    first = {"kernel": 7, "stride": 2, "padding": 3} if shape[1] > 64 else {}

    def pooled(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(*plain_conv(inputs, outputs), nn.MaxPool2d(2, 2))

    return [
        plain_conv(shape[0], c[0], **first),
        pooled(c[0], c[1]),
        plain_conv(c[1], c[2]),
        pooled(c[2], c[3]),
        pooled(c[3], c[4]),
        pooled(c[4], c[5]),
        nn.Sequential(nn.Flatten(), nn.Linear(c[5] * math.prod(grid), 1024), nn.BatchNorm1d(1024), nn.ReLU()),
    ]


@pytest.mark.parametrize(
    ("shape", "last"), [(MNIST, (1, 1)), (CIFAR, (2, 2)), (STL, (3, 3)), ((1, 16, 40), (1, 2)), ((2, 66, 70), (2, 2))]
)
def test_vgg_equals_plain_modules(shape: Shape, last: tuple[int, int]) -> None:
    net = VggSettings(scale=1 / 64, dropout=0.0)
    assert_equal_in_training_and_after(layers_of(net, shape), plain_vgg(net, shape, last), shape)


@pytest.mark.parametrize(
    ("shape", "scale", "classes", "published"),
    [(MNIST, 1, 10, 7.3), (MNIST, 2, 10, 28.2), (CIFAR, 1, 10, 8.9), (CIFAR, 1, 100, 9.0), (STL, 1, 10, 11.5)],
)
def test_vgg8b_has_the_parameters_of_its_authors(shape: Shape, scale: int, classes: int, published: float) -> None:
    """The tables of github.com/anokland/local-loss: vgg8b, and vgg8b (2x)."""
    head = 1024 * classes + classes
    millions = (num_parameters(VggSettings(scale=scale), shape) + head) / 1e6
    assert round(millions, 1) == published


def test_vgg_units_form_two_groups_and_the_readout_sees_them_all() -> None:
    layer = layers_of(VggSettings(scale=1 / 64, dropout=0.0), MNIST)[-1]
    activations = torch.randn(3, 1024)
    tokens = layer.tokens(activations)
    assert tokens.shape == (3, 2, 512)
    assert torch.equal(tokens[:, 1], activations[:, 512:])
    assert layer.grid is None
    assert layer.features == 512
    assert layer.readout_width == 1024
    assert torch.equal(layer.readout_input(activations), activations)


def dropped(layer: Layer, x: Tensor, seed: int) -> Tensor:
    for module in layer.modules():
        if isinstance(module, Dropout):
            module.generator = torch.Generator().manual_seed(seed)
    output: Tensor = layer.train()(x)
    return output


@pytest.mark.parametrize(("index", "inputs"), [(0, (3, 32, 32)), (1, (8, 32, 32)), (6, (32, 2, 2))])
def test_vgg_drops_by_its_own_generator_alone(index: int, inputs: Shape) -> None:
    layer = layers_of(VggSettings(scale=1 / 16, dropout=0.4), CIFAR)[index]
    x = images_of(inputs, 6)
    first = dropped(layer, x, 7)
    torch.rand(11)
    assert torch.equal(dropped(layer, x, 7), first)
    assert not torch.equal(dropped(layer, x, 8), first)


@pytest.mark.parametrize("index", [0, 1])
def test_vgg_drops_whole_maps_and_scales_the_others(index: int) -> None:
    share, count = 0.25, 100
    wet, dry = (layers_of(VggSettings(scale=1 / 4, dropout=rate), CIFAR)[index] for rate in (share, 0.0))
    x = images_of((3 if index == 0 else 32, 8, 8), count)
    ours, plain = dropped(wet, x, 0).flatten(2), dry.train()(x).flatten(2)
    active, kept = ((maps != 0).any(dim=2) for maps in (plain, ours))  # (N, C)
    torch.testing.assert_close(ours, plain * kept[:, :, None] / (1 - share))
    num_active = int(active.sum())
    assert num_active > 0.9 * active.numel()
    error = (share * (1 - share) / num_active) ** 0.5
    assert 1 - int(kept.sum()) / num_active == pytest.approx(share, abs=4 * error)


def test_vgg_drops_single_units_of_the_last_layer() -> None:
    wet, dry = (layers_of(VggSettings(scale=1 / 64, dropout=rate), MNIST)[-1] for rate in (0.25, 0.0))
    x = torch.randn(50, 8, 1, 1)
    ours, plain = dropped(wet, x, 0), dry.train()(x)
    active = plain > 0
    assert active.float().mean() > 0.3
    share = (ours[active] == 0).float().mean().item()
    assert share == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / int(active.sum())) ** 0.5)
    assert torch.equal(ours[ours != 0], (plain / 0.75)[ours != 0])


def test_vgg_needs_no_generator_to_evaluate() -> None:
    x = images_of(MNIST)
    wet, dry = (layers_of(VggSettings(scale=1 / 64, dropout=rate), MNIST) for rate in (0.5, 0.0))
    y = x
    for ours, plain in zip(wet, dry, strict=True):
        x, y = ours.eval()(x), plain.eval()(y)
        assert torch.equal(x, y)


# ---------------------------------------------------------------------------------------------------------------------
# ResNet


class PlainBlock(nn.Module):
    """A basic block whose shortcut is a fixed 1×1 convolution: every second pixel, the identity, and rows of zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.register_buffer("identity", torch.eye(outputs, inputs)[:, :, None, None], persistent=False)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + F.conv2d(x, self.get_buffer("identity"), stride=self.stride))


@pytest.mark.parametrize("shape", [CIFAR, (1, 11, 6)])
def test_resnet_equals_plain_modules(shape: Shape) -> None:
    plain: list[nn.Module] = [
        nn.Sequential(*plain_conv(shape[0], 4), PlainBlock(4, 4, 1)),
        PlainBlock(4, 4, 1),
        PlainBlock(4, 8, 2),
        PlainBlock(8, 8, 1),
        PlainBlock(8, 16, 2),
        PlainBlock(16, 16, 1),
    ]
    assert_equal_in_training_and_after(layers_of(ResnetSettings(depth=14, width=4), shape), plain, shape)


@pytest.mark.parametrize(("depth", "published"), [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85"), (110, "1.7")])
def test_resnet_has_the_parameters_of_its_paper(depth: int, published: str) -> None:
    """He et al. 2016, Table 6, in millions, head included."""
    millions = (num_parameters(ResnetSettings(depth=depth), CIFAR) + 64 * 10 + 10) / 1e6
    assert f"{millions:.{len(published) - 2}f}" == published


def test_resnet_32_is_fifteen_layers_in_three_groups() -> None:
    net = ResnetSettings().resolve(CIFAR)
    assert net.num_layers == 15
    with torch.device("meta"):
        layers = [net.build(index, CIFAR) for index in range(15)]
    assert [layer.features for layer in layers] == [16] * 5 + [32] * 5 + [64] * 5
    assert [layer.grid for layer in layers] == [(32, 32)] * 5 + [(16, 16)] * 5 + [(8, 8)] * 5


def test_resnet_s_first_convolution_can_be_a_layer_of_its_own() -> None:
    joined, alone = ResnetSettings(), ResnetSettings(stem="alone").resolve(CIFAR)
    assert alone.num_layers == 16
    assert num_parameters(alone, CIFAR) == num_parameters(joined, CIFAR)
    x = images_of(CIFAR, 2)
    one, (stem, block) = layers_of(joined, CIFAR)[0], layers_of(alone, CIFAR)[:2]
    one.load_state_dict(
        {f"stem.{name}": value for name, value in stem.state_dict().items()} | block.state_dict(), strict=True
    )
    assert torch.equal(one.eval()(x), block.eval()(stem.eval()(x)))


def test_resnet_starts_as_he_et_al_initialise() -> None:
    torch.manual_seed(0)
    layer = ResnetSettings().build(12, CIFAR)
    for name in ("conv1", "conv2"):
        weight = layer.get_parameter(f"{name}.weight")
        assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
        assert weight.abs().max() > 3 * weight.std()  # normal, not uniform


# ---------------------------------------------------------------------------------------------------------------------
# All three


@pytest.mark.parametrize("net", THIN, ids=lambda net: net.kind)
@pytest.mark.parametrize("shape", [MNIST, CIFAR, STL, (1, 19, 33)])
def test_grid_and_features_are_those_of_the_output(net: NetConfig, shape: Shape) -> None:
    activations = images_of(shape, 2)
    for layer in layers_of(net, shape):
        activations = layer.eval()(activations)
        tokens = layer.tokens(activations)
        assert tokens.shape[2] == layer.features
        torch.testing.assert_close(layer.pool(activations), tokens.mean(dim=1))
        if layer.grid is None:
            assert activations.ndim == 2
            continue
        assert activations.shape[1:] == (layer.features, *layer.grid)
        rows, columns = layer.grid
        for row, column in ((0, 0), (rows - 1, 0), (0, columns - 1), (rows // 2, columns // 2)):
            assert torch.equal(tokens[:, row * columns + column], activations[:, :, row, column])


@pytest.mark.parametrize("net", THIN, ids=lambda net: net.kind)
def test_layer_can_be_built_alone(net: NetConfig) -> None:
    net = net.resolve(CIFAR)
    x = images_of(CIFAR, 2)
    for index in range(net.num_layers):
        torch.manual_seed(index)
        among_others = net.build(index, CIFAR)
        [net.build(other, CIFAR) for other in range(net.num_layers)]
        torch.manual_seed(index)
        alone = net.build(index, CIFAR)
        output = alone.train()(x).detach()
        assert torch.equal(among_others.train()(x), output)
        x = output


@pytest.mark.parametrize("net", THIN, ids=lambda net: net.kind)
@pytest.mark.parametrize("training", [True, False])
def test_layer_runs_without_memory(net: NetConfig, training: bool) -> None:
    """The pipeline measures its messages on the meta device."""
    net = net.resolve(CIFAR)
    real = images_of(CIFAR, 2)
    with torch.device("meta"), torch.no_grad():
        meta = torch.empty(2, *CIFAR)
        for index in range(net.num_layers):
            meta = net.build(index, CIFAR).train(training)(meta)
            assert meta.is_meta
    for layer in layers_of(net, CIFAR):
        real = layer.train(training)(real)
    assert meta.shape == real.shape


@pytest.mark.parametrize("net", THIN, ids=lambda net: net.kind)
def test_every_parameter_learns(net: NetConfig) -> None:
    x = images_of(CIFAR, 6)
    for layer in layers_of(net, CIFAR):
        output = layer.train()(x)
        layer.pool(output).square().sum().backward()
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), name
        x = output.detach()


@pytest.mark.parametrize("net", [*THIN, CONV512], ids=lambda net: net.describe())
def test_settings_come_back_from_json(net: NetConfig) -> None:
    assert NETS.load(json.loads(json.dumps(NETS.dump(net)))) == net


@pytest.mark.parametrize(
    ("net", "name"),
    [
        (ConvSettings(), "conv256"),
        (CONV512, "conv512"),
        (ConvSettings(channels=(32, 64)), "conv[32 64]"),
        (ConvSettings(channels=(8, 256)), "conv[8 256]"),
        (VggSettings(), "VGG8b, K = 2"),
        (VggSettings(scale=0.25, groups=1), "VGG8b ×0.25, K = 1"),
        (ResnetSettings(), "ResNet-32"),
        (ResnetSettings(depth=20, width=32), "ResNet-20, width 32"),
    ],
)
def test_net_describes_itself(net: NetConfig, name: str) -> None:
    assert net.describe() == name


@pytest.mark.parametrize(
    ("net", "shape", "said"),
    [
        (ConvSettings(channels=()), CIFAR, ["`channels`", "64 256"]),
        (ConvSettings(channels=(64, 0)), CIFAR, ["`channels` 64 0", "at least 1"]),
        (ConvSettings(), (1, 2, 8), ["`first_padding` 0", "3×3", "2×8", "`first_padding` 1"]),
        (VggSettings(), (1, 15, 32), ["15×32", "VGG8b", "at least 16"]),
        (VggSettings(), (1, 8, 8), ["8×8", "at least 16"]),
        (VggSettings(dropout=1.0), CIFAR, ["`dropout` 1.0", "0 to below 1"]),
        (VggSettings(dropout=-0.1), CIFAR, ["`dropout` -0.1"]),
        (VggSettings(scale=0.0), CIFAR, ["`scale` 0.0", "above 0"]),
        (VggSettings(scale=math.nan), CIFAR, ["`scale` nan", "above 0"]),
        (VggSettings(groups=3), CIFAR, ["`groups` 3", "1024"]),
        (VggSettings(groups=0), CIFAR, ["`groups` 0", "1024"]),
        (ResnetSettings(depth=30), CIFAR, ["`depth` 30", "6n + 2", "26 or 32"]),
        (ResnetSettings(depth=33), CIFAR, ["`depth` 33", "32 or 38"]),
        (ResnetSettings(depth=7), CIFAR, ["`depth` 7", "8"]),
        (ResnetSettings(depth=2), CIFAR, ["`depth` 2", "8"]),
        (ResnetSettings(depth=-4), CIFAR, ["`depth` -4", "8"]),
        (ResnetSettings(width=0), CIFAR, ["`width` 0", "at least 1"]),
    ],
)
def test_net_that_cannot_be_is_refused_with_what_could(net: NetConfig, shape: Shape, said: list[str]) -> None:
    with pytest.raises(UserError) as refusal:
        net.resolve(shape)
    for part in said:
        assert part in str(refusal.value)


@pytest.mark.parametrize("net", [ConvSettings(first_padding=1), ResnetSettings()], ids=lambda net: net.kind)
def test_smallest_image_passes(net: NetConfig) -> None:
    x = images_of((1, 1, 1), 3)
    for layer in layers_of(net, (1, 1, 1)):
        x = layer.train()(x)
        assert layer.grid == (1, 1)
    assert x.isfinite().all()


def test_smallest_image_passes_vgg() -> None:
    x = images_of((1, 16, 16), 3)
    for layer in layers_of(VggSettings(scale=1 / 64, dropout=0.0), (1, 16, 16)):
        x = layer.train()(x)
    assert x.shape == (3, 1024)
