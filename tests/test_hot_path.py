"""What makes a step fast computes the same mathematics as the plain way, and the same bits in every executor."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.config.compiler import ENOUGH_STEPS, check_compiler
from pipeline.errors import UserError
from pipeline.layers.layer import LocalLayer
from pipeline.methods import BatchPosition, contrastive
from pipeline.methods.contrastive import marginal_contrastive_loss
from pipeline.nets import ConvSettings, MixerSettings, NetConfig, VitSettings
from pipeline.nets import attention as attending
from pipeline.nets.vit import project_normed
from pipeline.runtime.edges import edge_bytes
from tests.support import CPU, changed, tiny_spec

IMAGES = (3, 8, 8)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------------------------
# The loss in blocks of rows


def plain_loss(z: Tensor, labels: Tensor, temperature: float, margin: float) -> Tensor:
    """Aghagolzadeh & Ezoji 2025, eqs. 3 and 15, on the whole matrix, differentiated by PyTorch."""
    similarity = z @ z.T
    itself = torch.eye(len(z), dtype=torch.bool)
    positive = (labels[:, None] == labels) & ~itself
    similarity = torch.where(positive, torch.clamp(similarity + margin, max=1.0), similarity)
    log_probability = (similarity / temperature).masked_fill(itself, -torch.inf).log_softmax(dim=1)
    summed = log_probability.masked_fill(~positive, 0.0).sum(dim=1)
    return -(summed / positive.sum(dim=1).clamp(min=1)).mean()


@pytest.mark.parametrize("block", [1, 50, 37 * 5, 37 * 36, 1 << 18])  # similarities: 1, 1, 5, 36 and all 37 rows
@pytest.mark.parametrize("margin", [0.0, 0.4])
def test_loss_and_gradient_in_blocks_equal_those_of_the_whole_matrix(
    block: int, margin: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(contrastive._BLOCK, "cpu", block)
    labels = torch.arange(37) % 5
    labels[3] = 9  # an anchor without a positive
    z = F.normalize(normal(37, 6).double(), dim=1)
    z[1] = z[6]  # a pair whose margin is clipped
    mine, theirs = (z.clone().requires_grad_() for _ in range(2))
    loss = marginal_contrastive_loss(mine, labels, temperature=0.15, margin=margin)
    expected = plain_loss(theirs, labels, 0.15, margin)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_loss_never_holds_the_matrix_of_a_large_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contrastive._BLOCK, "cpu", 64 * 512)
    sizes: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            sizes.extend(r.numel() for r in (result if isinstance(result, tuple) else (result,)) if torch.is_tensor(r))
            return result

    z = F.normalize(normal(512, 8), dim=1).requires_grad_()
    with Watch():  # type: ignore[no-untyped-call]
        marginal_contrastive_loss(z, torch.arange(512) % 10, temperature=0.15, margin=0.4).backward()
    assert max(sizes) == 64 * 512
    assert z.grad is not None


# ---------------------------------------------------------------------------------------------------------------------
# Layers


@pytest.mark.parametrize(
    "net",
    [
        VitSettings(dim=8, heads=2, depth=2, patch=2),
        VitSettings(dim=8, heads=2, depth=2, patch=2, pooling="token"),
        MixerSettings(dim=8, depth=2, patch=2, token_hidden=4, channel_hidden=6),
    ],
    ids=["vit", "vit-token", "mixer"],
)
@pytest.mark.parametrize("index", [0, 1])
def test_learning_from_pooled_features_equals_pooling_the_activations(net: NetConfig, index: int) -> None:
    layer = net.build(index, IMAGES).double()
    for norm in (m for m in layer.modules() if isinstance(m, nn.LayerNorm)):  # as learned, not as initialised
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = normal(5, *(IMAGES if index == 0 else (16 + (getattr(net, "pooling", "") == "token"), 8)), seed=1).double()
    activations, pooled = layer.forward_pooled(x)
    plain = layer(x)
    assert not activations.requires_grad
    torch.testing.assert_close(activations, plain)
    torch.testing.assert_close(pooled, layer.pool(plain))
    weights = list(layer.parameters())
    mine = torch.autograd.grad(pooled.square().sum(), weights)
    for gradient, expected in zip(mine, torch.autograd.grad(layer.pool(plain).square().sum(), weights), strict=True):
        torch.testing.assert_close(gradient, expected)


def test_folded_norm_equals_norm_and_linear_and_sends_nothing_back_from_the_linear_layer() -> None:
    norm, linear = nn.LayerNorm(6).double(), nn.Linear(6, 9).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = normal(4, 3, 6).double()
    weights = [*norm.parameters(), *linear.parameters()]
    folded, plain = project_normed(norm, linear, x), linear(norm(x))
    torch.testing.assert_close(folded, plain)
    mine = torch.autograd.grad(folded.square().sum(), weights)
    for gradient, expected in zip(mine, torch.autograd.grad(plain.square().sum(), weights), strict=True):
        torch.testing.assert_close(gradient, expected)


def test_attention_by_products_equals_the_fused_kernel() -> None:
    qkv = normal(3, 10, 3 * 8).double()
    mine, theirs = (qkv.clone().requires_grad_() for _ in range(2))
    q, k, v = theirs.view(3, 10, 3, 2, 4).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(3, 10, 8)
    mixed = attending.attention(mine, 2)
    torch.testing.assert_close(mixed, expected)
    mixed.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_tokens_take_the_fused_kernel_with_the_same_result(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    qkv = normal(2, 12, 3 * 8).to(dtype)
    by_products = attending.attention(qkv, 2)
    monkeypatch.setattr(attending, "_FEW_TOKENS", 11)
    monkeypatch.setattr(attending, "_plain", None)  # must not be called
    fused = attending.attention(qkv, 2)
    assert fused.dtype == dtype
    torch.testing.assert_close(fused, by_products, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)


@pytest.mark.parametrize(("at_a_time", "sizes"), [(None, [12]), (12, [12]), (5, [4, 4, 4]), (8, [6, 6])])
def test_a_batch_in_parts_teaches_a_layer_what_the_whole_one_does(at_a_time: int | None, sizes: list[int]) -> None:
    whole, parts = (LocalLayer(tiny_spec(), 0, CPU) for _ in range(2))
    whole.net.at_a_time, parts.net.at_a_time = None, at_a_time
    seen: list[int] = []
    pooled = parts.net.forward_pooled
    parts.net.forward_pooled = lambda x: (seen.append(len(x)), pooled(x))[1]  # type: ignore[method-assign, func-returns-value]
    activations, labels, where = {"x": normal(12, 1, 8, 8)}, torch.arange(6) % 3, BatchPosition(training=True)
    passed, loss = parts.train(activations, labels, where)
    expected, expected_loss = whole.train(activations, labels, where)
    assert seen == sizes
    torch.testing.assert_close(passed["x"], expected["x"])
    torch.testing.assert_close(loss, expected_loss)
    for gradient, wanted in zip(parts.net.parameters(), whole.net.parameters(), strict=True):
        torch.testing.assert_close(gradient.grad, wanted.grad, rtol=1e-4, atol=1e-6)


def test_more_threads_and_narrower_numbers_leave_room_for_larger_parts() -> None:
    sizes = []
    for values in ({}, {"threads": 2}, {"precision": "bf16"}):
        layer = LocalLayer(changed(tiny_spec(), "pipeline", **values), 0, CPU)
        layer.net.at_a_time = 3
        sizes.append([len(part["x"]) for part in layer.forward._parts({"x": normal(12, 1, 8, 8)}, CPU)])
    assert sizes == [[3, 3, 3, 3], [6, 6], [6, 6]]


def test_nets_whose_samples_depend_on_one_another_are_not_divided() -> None:
    normed = ConvSettings(channels=(8, 8)).resolve((3, 8, 8)).build(0, (3, 8, 8))
    assert any(isinstance(module, nn.BatchNorm2d) for module in normed.modules())
    assert normed.at_a_time is None
    assert VitSettings(dim=8, heads=2, depth=2, patch=4).build(1, (3, 32, 32)).at_a_time == 2048 // 64


# ---------------------------------------------------------------------------------------------------------------------
# Transfer dtype


def test_wire_halves_what_every_layer_passes_on_and_the_next_one_works_in_float32() -> None:
    wide, narrow = tiny_spec(stages=3), changed(tiny_spec(stages=3), "pipeline", transfer_dtype="bf16")
    beside = 2 * 64  # labels and ids: six numbers each, aligned
    halves = [(size - beside) // 2 + beside for size in edge_bytes(wide)[1:]]
    assert edge_bytes(narrow)[1:] == halves
    labels, where = torch.arange(6) % 3, BatchPosition(training=True)
    activations = {"x": normal(12, 1, 8, 8)}
    for index in range(3):
        passed, loss = LocalLayer(wide, index, CPU).train(activations, labels, where)
        rounded, same_loss = LocalLayer(narrow, index, CPU).train(activations, labels, where)
        assert torch.equal(rounded["x"], passed["x"].bfloat16())
        assert loss == same_loss
        received, _ = LocalLayer(narrow, index, CPU).train(
            {name: t.bfloat16() if index else t for name, t in activations.items()}, labels, where
        )
        widened, _ = LocalLayer(wide, index, CPU).train(
            {name: t.bfloat16().float() if index else t for name, t in activations.items()}, labels, where
        )
        assert torch.equal(received["x"], widened["x"].bfloat16())
        activations = passed


# ---------------------------------------------------------------------------------------------------------------------
# torch.compile


def test_compile_without_a_compiler_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"C\+\+ compiler.*`compile` off"):
        check_compiler("cpu")
    check_compiler("cuda")  # Triton brings its own


def test_auto_compiles_long_runs_only() -> None:
    spec = changed(tiny_spec(), "pipeline", compile="auto")
    per_epoch = spec.steps_per_epoch
    enough = -(-ENOUGH_STEPS // per_epoch)
    assert changed(spec, "train", epochs=enough).compiles
    assert not changed(spec, "train", epochs=enough - 1).compiles
    assert not changed(spec, "pipeline", compile="off").compiles
