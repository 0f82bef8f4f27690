"""MLP-Mixer against plain torch modules and the parameter counts of Tolstikhin et al. 2021."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.nets import NETS, MixerSettings, NetConfig, Shape, VitSettings
from tests.support_nets import images_of, layers_of, num_parameters

SHAPE = (3, 8, 12)
THIN = MixerSettings(dim=10, depth=3, patch=4, token_hidden=5, channel_hidden=7)


class PlainMixerLayer(nn.Module):
    """The paper's layer with convolutions: a 1×1 convolution over tokens is the same map for every channel."""

    def __init__(self, tokens: int, dim: int, token_hidden: int, channel_hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mix_tokens = nn.Sequential(
            nn.Conv1d(tokens, token_hidden, 1), nn.GELU(), nn.Conv1d(token_hidden, tokens, 1)
        )
        self.norm2 = nn.LayerNorm(dim)
        self.mix_channels = nn.Sequential(nn.Linear(dim, channel_hidden), nn.GELU(), nn.Linear(channel_hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix_tokens(self.norm1(x))
        y: Tensor = x + self.mix_channels(self.norm2(x))
        return y


class PlainStem(nn.Module):
    def __init__(self, channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, dim, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.conv(images)
        return maps.flatten(2).transpose(1, 2)


def test_mixer_equals_plain_modules() -> None:
    x = y = images_of(SHAPE)
    for index, layer in enumerate(layers_of(THIN, SHAPE)):
        block = PlainMixerLayer(6, 10, 5, 7)
        plain = nn.Sequential(PlainStem(3, 10, 4), block) if index == 0 else block
        # Linear weights (out, in) become those of convolutions (out, in, 1) and (out, channels, 4, 4).
        theirs = plain.state_dict()
        pairs = zip(theirs, layer.state_dict().values(), strict=True)
        plain.load_state_dict({name: value.reshape(theirs[name].shape) for name, value in pairs})
        x, y = layer(x), plain(y)
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize(
    ("patch", "dim", "depth", "published"),
    [
        (32, 512, 8, 19),
        (16, 512, 8, 18),
        (32, 768, 12, 60),
        (16, 768, 12, 59),
        (32, 1024, 24, 206),
        (16, 1024, 24, 207),
        (14, 1280, 32, 431),
    ],
)
def test_mixer_has_the_parameters_of_its_paper(patch: int, dim: int, depth: int, published: int) -> None:
    """Tolstikhin et al. 2021, Table 1, in millions: S/32 to H/14 on 224×224 pixels, without the head."""
    net = MixerSettings(patch=patch, dim=dim, depth=depth)
    assert round(num_parameters(net, (3, 224, 224)) / 1e6) == published


def test_automatic_hidden_units_follow_the_width() -> None:
    net = MixerSettings(dim=64).resolve((3, 32, 32))
    assert (net.token_hidden, net.channel_hidden, net.patch) == (32, 256, 4)
    assert MixerSettings(dim=1).resolve((3, 32, 32)).token_hidden == 1
    kept = MixerSettings(dim=64, token_hidden=3, channel_hidden=5).resolve((3, 32, 32))
    assert (kept.token_hidden, kept.channel_hidden) == (3, 5)


@pytest.mark.parametrize(
    ("shape", "grid"), [((1, 28, 28), (7, 7)), ((3, 32, 32), (8, 8)), ((3, 96, 96), (8, 8)), ((1, 8, 12), (4, 6))]
)
def test_mixer_takes_the_patches_of_the_vit(shape: Shape, grid: tuple[int, int]) -> None:
    vit = VitSettings(dim=6, heads=1).resolve(shape)
    net = MixerSettings(dim=6, depth=2).resolve(shape)
    assert net.patch == vit.patch
    x = images_of(shape)
    for index in range(2):
        layer = net.build(index, shape)
        assert layer.grid == vit.build(index, shape).grid == grid
        x = layer(x)
        assert x.shape == (len(x), grid[0] * grid[1], 6)
        assert layer.features == 6
        assert torch.equal(layer.tokens(x), x)
        assert torch.equal(layer.pool(x), x.mean(dim=1))


def test_token_belongs_to_its_place_in_the_image() -> None:
    """What the embedding makes of a patch comes out as the token of its row and column."""
    first = layers_of(MixerSettings(dim=4, depth=1, patch=4), SHAPE)[0]
    embedding = first.get_submodule("embedding")
    image = images_of(SHAPE, 1)
    changed = image.clone()
    changed[:, :, 4:8, 8:12] += 1  # the patch in row 1, column 2
    moved = (embedding(changed) != embedding(image)).any(dim=2)[0]
    assert first.grid == (2, 3)
    assert moved.nonzero().flatten().tolist() == [1 * 3 + 2]


def test_layer_can_be_built_alone() -> None:
    net = THIN.resolve(SHAPE)
    torch.manual_seed(1)
    among_others = net.build(1, SHAPE)
    net.build(0, SHAPE)
    torch.manual_seed(1)
    alone = net.build(1, SHAPE)
    tokens = torch.randn(2, 6, 10)
    assert torch.equal(alone(tokens), among_others(tokens))


def test_layer_runs_without_memory() -> None:
    net = THIN.resolve(SHAPE)
    with torch.device("meta"), torch.no_grad():
        x = torch.empty(2, *SHAPE)
        for index in range(3):
            x = net.build(index, SHAPE)(x)
    assert x.is_meta
    assert x.shape == (2, 6, 10)


def test_every_parameter_learns() -> None:
    x = images_of(SHAPE)
    for layer in layers_of(THIN, SHAPE):
        output = layer(x)
        layer.pool(output).square().sum().backward()
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), name
        x = output.detach()


@pytest.mark.parametrize("net", [MixerSettings(), THIN])
def test_settings_come_back_from_json(net: NetConfig) -> None:
    assert NETS.load(json.loads(json.dumps(NETS.dump(net)))) == net


def test_mixer_describes_itself() -> None:
    assert MixerSettings().describe() == "Mixer[256 6]"


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (MixerSettings(dim=0), ["`dim` 0", "at least 1"]),
        (MixerSettings(depth=0), ["`depth` 0", "at least 1"]),
        (MixerSettings(token_hidden=0), ["`token_hidden` 0", "at least 1"]),
        (MixerSettings(channel_hidden=-1), ["`channel_hidden` -1", "at least 1"]),
        (MixerSettings(patch=5), ["`patch` 5", "32×32", "1, 2, 4, 8, 16, 32"]),
    ],
)
def test_net_that_cannot_be_is_refused_with_what_could(net: MixerSettings, said: list[str]) -> None:
    with pytest.raises(UserError) as refusal:
        net.resolve((3, 32, 32))
    for part in said:
        assert part in str(refusal.value)
