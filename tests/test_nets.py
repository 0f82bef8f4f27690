"""Nets: shapes, patches that are the image's, the encoder against torch's own, a layer the same alone or not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.layers.layer import LocalLayer
from pipeline.nets import NETS, MlpSettings, NetConfig, Shape, VitSettings
from pipeline.nets.patches import cut
from pipeline.nets.vit import EncoderLayer, PatchEmbedding
from tests.support import CPU, tiny_spec


def images_of(shape: Shape, count: int = 3) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# ViT


@pytest.mark.parametrize(
    ("shape", "patch", "tokens"),
    [
        ((1, 8, 8), 2, 16),
        ((1, 28, 28), 4, 49),
        ((3, 32, 32), 4, 64),
        ((3, 64, 64), 8, 64),
        ((3, 96, 96), 12, 64),
    ],
)
def test_automatic_patch_gives_the_papers_tokens(shape: Shape, patch: int, tokens: int) -> None:
    net = VitSettings(dim=8, heads=2, depth=3).resolve(shape)
    assert net.patch == patch
    activations = images_of(shape)
    for index in range(3):
        layer = net.build(index, shape)
        activations = layer(activations)
        assert activations.shape == (3, tokens, 8)
        assert layer.pool(activations).shape == (3, 8)
        assert layer.features == 8


@pytest.mark.parametrize(("shape", "patch"), [((1, 7, 7), 7), ((1, 30, 30), 5), ((3, 1, 1), 1), ((1, 12, 8), 2)])
def test_automatic_patch_divides_odd_image_sizes(shape: Shape, patch: int) -> None:
    net = VitSettings(dim=8, heads=2).resolve(shape)
    assert net.patch == patch
    assert net.build(0, shape)(images_of(shape)).shape == (3, shape[1] * shape[2] // patch**2, 8)


def test_cutting_patches_is_one_copy_laid_out_as_unfold_does() -> None:
    images = torch.randn(5, 3, 8, 12)
    with torch.profiler.profile() as seen:
        patches = cut(images, 4)
    assert [event.count for event in seen.key_averages() if event.key == "aten::copy_"] == [1]
    unfolded = torch.nn.functional.unfold(images, 4, stride=4).transpose(1, 2)
    assert torch.equal(patches, unfolded) and patches.stride() == unfolded.stride()


def test_patches_are_the_images_patches_row_by_row() -> None:
    """Token t of the embedding sees exactly the pixels of patch (t // 3, t % 3) of a 4×6 image, channels first."""
    shape = (2, 4, 6)
    embedding = PatchEmbedding(VitSettings(dim=8, heads=1, patch=2), shape)
    with torch.no_grad():  # the embedding passes the patches on as they are
        embedding.project.weight.copy_(torch.eye(8))
        embedding.project.bias.zero_()
        embedding.position.zero_()
    images = images_of(shape).abs()
    tokens = embedding(images)
    assert tokens.shape == (3, 6, 8)
    for row in range(2):
        for column in range(3):
            patch = images[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(tokens[:, 3 * row + column], patch.flatten(1))


def test_embedding_is_linear_relu_position() -> None:
    shape = (1, 4, 4)
    embedding = PatchEmbedding(VitSettings(dim=6, heads=1, patch=2), shape)
    image = images_of(shape, 1)
    patches = torch.stack([image[0, 0, r : r + 2, c : c + 2].flatten() for r in (0, 2) for c in (0, 2)])
    expected = F.relu(patches @ embedding.project.weight.T + embedding.project.bias) + embedding.position
    torch.testing.assert_close(embedding(image)[0], expected)


def test_position_starts_as_a_standard_normal() -> None:
    torch.manual_seed(0)
    position = PatchEmbedding(VitSettings(dim=64, heads=1, patch=4), (3, 32, 32)).position
    assert position.mean().item() == pytest.approx(0, abs=0.05)
    assert position.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("heads", [1, 4])
def test_encoder_layer_equals_torchs_own_with_the_same_weights(heads: int) -> None:
    torch.manual_seed(1)
    ours = EncoderLayer(16, heads, "mean", None)
    theirs = nn.TransformerEncoderLayer(16, heads, 32, 0.0, "gelu", batch_first=True, norm_first=True)
    for parameter in theirs.parameters():  # biases and norms too, which start at 0 and 1
        nn.init.normal_(parameter, std=0.3)
    pairs = [
        (ours.norm1, theirs.norm1),
        (ours.project, theirs.self_attn.out_proj),
        (ours.norm2, theirs.norm2),
        (ours.expand, theirs.linear1),
        (ours.contract, theirs.linear2),
    ]
    for mine, other in pairs:
        mine.load_state_dict(other.state_dict())
    ours.qkv.load_state_dict({"weight": theirs.self_attn.in_proj_weight, "bias": theirs.self_attn.in_proj_bias})
    tokens = torch.randn(4, 9, 16)
    torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-6, atol=1e-6)


def test_encoder_layer_has_no_dropout_and_no_state_between_batches() -> None:
    layer = VitSettings(dim=8, heads=2, patch=2).build(1, (1, 8, 8)).train()
    tokens = torch.randn(2, 16, 8)
    first = layer(tokens)
    layer(torch.randn(2, 16, 8))
    assert torch.equal(layer(tokens), first)
    assert list(layer.buffers()) == []


def test_attention_starts_as_torchs_own_does() -> None:
    torch.manual_seed(2)
    ours = EncoderLayer(32, 4, "mean", None)
    torch.manual_seed(2)
    theirs = nn.MultiheadAttention(32, 4)
    bound = (6 / (32 + 3 * 32)) ** 0.5  # Xavier
    for weight in (ours.qkv.weight, theirs.in_proj_weight):
        assert bound * 0.98 < weight.abs().max().item() <= bound
    assert not ours.qkv.bias.any()
    assert not ours.project.bias.any()


def test_mean_pooling_is_the_mean_over_tokens() -> None:
    tokens = torch.randn(3, 5, 8)
    layer = VitSettings(dim=8, heads=2, patch=2).build(1, (1, 8, 8))
    torch.testing.assert_close(layer.pool(tokens), sum(tokens[:, t] for t in range(5)) / 5)


def test_class_token_is_one_more_token_in_front_and_the_pooled_feature() -> None:
    shape = (1, 8, 8)
    net = VitSettings(dim=8, heads=2, pooling="token").resolve(shape)
    first, second = net.build(0, shape), net.build(1, shape)
    assert isinstance(first, EncoderLayer)
    assert first.embedding is not None
    embedded = first.embedding(images_of(shape))
    assert embedded.shape == (3, 17, 8)
    assert torch.equal(embedded[:, 0], first.embedding.token[0].expand(3, 8))  # type: ignore[index]
    activations = second(first(images_of(shape)))
    assert activations.shape == (3, 17, 8)
    assert torch.equal(second.pool(activations), activations[:, 0])


def test_class_token_learns_from_the_image() -> None:
    """Were it not part of the attention, the pooled feature would be the same for every image."""
    shape = (1, 8, 8)
    layer = VitSettings(dim=8, heads=2, pooling="token").resolve(shape).build(0, shape)
    pooled = layer.pool(layer(images_of(shape)))
    assert not torch.allclose(pooled[0], pooled[1])


@pytest.mark.parametrize(("pooling", "extra"), [("mean", 0), ("token", 128)])
def test_vit_128_4_5_has_the_parameters_counted_by_hand(pooling: str, extra: int) -> None:
    shape = (3, 32, 32)
    net = VitSettings(pooling=pooling).resolve(shape)  # type: ignore[arg-type]
    encoder = 4 * (128 * 128 + 128) + 2 * 2 * 128 + (128 * 256 + 256) + (256 * 128 + 128)
    embedding = (3 * 4 * 4 * 128 + 128) + 64 * 128 + extra
    counts = [num_parameters(net.build(index, shape)) for index in range(5)]
    assert counts == [embedding + encoder, *[encoder] * 4]


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (VitSettings(dim=10, heads=4), ["`dim` 10", "`heads` 4", "1, 2, 5, 10"]),
        (VitSettings(dim=4, heads=8), ["`dim` 4", "`heads` 8", "1, 2, 4"]),
        (VitSettings(patch=5), ["`patch` 5", "32×32", "1, 2, 4, 8, 16, 32"]),
        (VitSettings(patch=0), ["`patch` 0", "1, 2, 4, 8, 16, 32"]),
        (VitSettings(patch=64), ["`patch` 64", "1, 2, 4, 8, 16, 32"]),
        (VitSettings(dim=0), ["`dim` 0", "at least 1"]),
        (VitSettings(heads=0), ["`heads` 0", "at least 1"]),
        (VitSettings(heads=-1), ["`heads` -1", "at least 1"]),
        (VitSettings(depth=0), ["`depth` 0", "at least 1"]),
        (MlpSettings(width=0), ["`width` 0", "at least 1"]),
        (MlpSettings(depth=0), ["`depth` 0", "at least 1"]),
    ],
)
def test_net_that_cannot_be_is_refused_with_what_could(net: NetConfig, said: list[str]) -> None:
    with pytest.raises(UserError) as refusal:
        net.resolve((3, 32, 32))
    for part in said:
        assert part in str(refusal.value)


# ---------------------------------------------------------------------------------------------------------------------
# MLP


def test_mlp_takes_images_first_and_features_then() -> None:
    shape = (1, 28, 28)
    net = MlpSettings(width=20, depth=3).resolve(shape)
    activations = images_of(shape)
    for index in range(net.num_layers):
        layer = net.build(index, shape)
        activations = layer(activations)
        assert activations.shape == (3, 20)
        assert torch.equal(layer.pool(activations), activations)
        assert (activations >= 0).all()


def test_mlp_500_3_has_the_parameters_counted_by_hand() -> None:
    net = MlpSettings()
    counts = [num_parameters(net.build(index, (1, 28, 28))) for index in range(3)]
    assert counts == [784 * 500 + 500, 500 * 500 + 500, 500 * 500 + 500]


def test_mlp_layer_is_linear_and_relu() -> None:
    layer = MlpSettings(width=4).build(0, (2, 3, 3))
    images = images_of((2, 3, 3))
    linear = layer.get_submodule("linear")
    assert isinstance(linear, nn.Linear)
    torch.testing.assert_close(layer(images), torch.clamp(images.flatten(1) @ linear.weight.T + linear.bias, min=0))


def test_where_an_mlps_layers_have_their_norm() -> None:
    def normed(x: Tensor) -> Tensor:
        return (x - x.mean(dim=1, keepdim=True)) / (x.var(dim=1, keepdim=True, unbiased=False) + 1e-5).sqrt()

    for norm, before, behind in (
        ("none", (False, False, False), False),
        ("after", (False, False, False), True),
        ("before", (False, True, True), False),
        ("before-all", (True, True, True), False),
    ):
        net = MlpSettings(width=4, depth=3, norm=norm)  # type: ignore[arg-type]
        x = images_of((2, 3, 3))
        for index in range(3):
            layer = net.build(index, (2, 3, 3))
            linear = layer.get_submodule("linear")
            assert isinstance(linear, nn.Linear)
            flat = x.flatten(1)
            seen = normed(flat) if before[index] else flat
            expected = torch.clamp(seen @ linear.weight.T + linear.bias, min=0)
            x = layer(x)
            torch.testing.assert_close(x, normed(expected) if behind else expected, rtol=1e-4, atol=1e-5)
            assert num_parameters(layer) == linear.weight.numel() + 4 + 2 * (flat.shape[1] * before[index] + 4 * behind)


def test_a_norm_of_version_0_1_has_its_name_of_now() -> None:
    assert NETS.load({"kind": "mlp", "norm": "layer"}) == MlpSettings(norm="after")


# ---------------------------------------------------------------------------------------------------------------------
# Both


@pytest.mark.parametrize("net", [VitSettings(dim=8, heads=2, depth=3, patch=2), MlpSettings(width=8, depth=3)])
def test_layer_built_alone_equals_the_layer_built_with_the_others(net: NetConfig) -> None:
    spec = tiny_spec(net=net)
    together = [LocalLayer(spec, index, CPU) for index in range(3)]
    torch.rand(5)  # nor does it depend on what else was drawn
    alone = LocalLayer(spec, 2, CPU)
    for mine, other in ((alone.net, together[2].net), (alone.readout, together[2].readout)):
        for name, value in mine.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    vectors = [nn.utils.parameters_to_vector(layer.net.parameters()) for layer in (together[1], alone)]
    assert not torch.equal(*vectors)


def test_building_a_layer_leaves_the_shared_random_stream_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    LocalLayer(tiny_spec(), 0, CPU)
    assert torch.equal(torch.rand(3), expected)


def test_another_seed_gives_other_weights() -> None:
    first, second = (LocalLayer(tiny_spec(seed=seed), 1, CPU).weights() for seed in (0, 1))
    assert not torch.equal(first["layers.1.net.qkv.weight"], second["layers.1.net.qkv.weight"])


@pytest.mark.parametrize(
    ("net", "name"), [(VitSettings(dim=192, heads=6, depth=6), "ViT[192 6 6]"), (MlpSettings(), "MLP[500 3]")]
)
def test_net_describes_itself_in_the_papers_notation(net: NetConfig, name: str) -> None:
    assert net.describe() == name
