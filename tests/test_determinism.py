"""Kernels that give the same bits every time: what is asked of PyTorch, and what is told where it has none."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.errors import NondeterministicError
from pipeline.layers.compile import compiled
from pipeline.layers.layer import LocalLayer
from pipeline.layers.shared_state import VALUES, FixedState, VersionedState
from pipeline.methods import BatchPosition, CffSettings, CflSettings, DclSettings, MethodConfig
from pipeline.nets import (
    ConvSettings,
    MixerSettings,
    MlpSettings,
    NetConfig,
    ResnetSettings,
    VggSettings,
    VitSettings,
)
from pipeline.nets.sizes import layer_features
from pipeline.runtime import process
from tests.support import CPU, changed, tiny_spec

deterministic: Any = torch.utils.deterministic  # mypy does not see its setting

LABELS = torch.tensor([0, 1, 2, 0])
LEARNING = BatchPosition(training=True)


@pytest.fixture
def asked() -> Iterator[None]:
    """As a run on a GPU asks; afterwards as it was."""
    filled = deterministic.fill_uninitialized_memory
    process.ask_for_determinism(warn=False)
    yield
    torch.use_deterministic_algorithms(False)
    deterministic.fill_uninitialized_memory = filled


def layer_of(net: NetConfig, method: MethodConfig, shape: tuple[int, int, int], index: int = 0) -> LocalLayer:
    net = net.resolve(shape)
    spec = tiny_spec(net=net, method=method.resolve(layer_features(net, shape)), readout="online")
    spec = changed(spec, "readout", readout_layers="all")
    if shape != spec.shape:
        from dataclasses import replace

        spec = replace(spec, shape=shape)
    shared = FixedState(VersionedState(spec).weights()[VALUES]) if spec.shared_versions is not None else None
    layer = LocalLayer(spec, index, CPU, shared)
    layer._contributes = False
    return layer


def images(layer: LocalLayer, shape: tuple[int, int, int]) -> Tensor:
    return torch.randn(len(LABELS) * layer.rule.num_views, *shape, generator=torch.Generator().manual_seed(0))


# PyTorch's list of what has no deterministic kernel on a GPU (torch.use_deterministic_algorithms), by the operations
# that autograd calls. A sum over floats that runs along an axis is one too; over integers it is not.
WITHOUT = {
    "avg_pool3d_backward",
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward",
    "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward",
    "max_unpool2d",
    "max_unpool3d",
    "upsample_linear1d_backward",
    "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward",
    "reflection_pad1d_backward",
    "reflection_pad2d_backward",
    "reflection_pad3d_backward",
    "nll_loss2d_forward",
    "nll_loss2d_backward",
    "_ctc_loss_backward",
    "_embedding_bag_per_sample_weights_backward",
    "put_",
    "put",
    "histc",
    "median",
    "grid_sampler_2d_backward",
    "grid_sampler_3d_backward",
    "cumsum",
    "cumprod",
    "scatter_reduce",
    "scatter_reduce_",
    "bincount",
    "kthvalue",
}


class Operations(TorchDispatchMode):
    """Notes the name of every operation that is called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


NETS: dict[str, tuple[NetConfig, tuple[int, int, int]]] = {
    "ViT": (VitSettings(dim=8, heads=2, depth=2, patch=2), (1, 8, 8)),
    "ViT, 256 tokens": (VitSettings(dim=8, heads=2, depth=2, patch=1), (1, 16, 16)),
    "ViT, class token": (VitSettings(dim=8, heads=2, depth=2, patch=2, pooling="token"), (1, 8, 8)),
    "MLP": (MlpSettings(width=8, depth=2, norm="before-all", dropout=0.1), (1, 8, 8)),
    "conv": (ConvSettings(channels=(4, 6)), (3, 16, 16)),
    "VGG": (VggSettings(scale=0.0625), (3, 32, 32)),
    "ResNet": (ResnetSettings(depth=8, width=4), (3, 16, 16)),
    "Mixer": (MixerSettings(dim=8, depth=2), (3, 16, 16)),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("method", [CffSettings(), CflSettings(), DclSettings(), CflSettings(similarity="cosine")])
def test_no_layer_of_ours_uses_an_operation_without_a_deterministic_kernel(net: str, method: MethodConfig) -> None:
    settings, shape = NETS[net]
    for index in range(2):
        layer = layer_of(settings, method, shape, index)
        activations = {"x": images(layer, shape)}
        if index:
            activations, _ = layer_of(settings, method, shape).train(activations, LABELS, LEARNING)
        with Operations() as operations:
            layer.train(activations, LABELS, LEARNING)
        assert "mm" in operations.names or "bmm" in operations.names or "convolution" in operations.names
        assert not operations.names & WITHOUT


def test_an_operation_that_has_none_ends_the_run_with_its_name_and_the_setting(
    asked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, shape = NETS["MLP"]
    layer = layer_of(settings, CffSettings(), shape)
    loss = layer.rule.loss

    def with_put(*arguments: Any) -> Tensor:
        value = loss(*arguments)
        return value + torch.zeros(1).put_(torch.tensor([0]), torch.ones(1))[0]

    monkeypatch.setattr(layer.rule, "loss", with_put)
    with pytest.raises(NondeterministicError, match=r"layer 1: put_\S* has no kernel .* `deterministic` warn") as found:
        layer.train({"x": images(layer, shape)}, LABELS, LEARNING)
    again = pickle.loads(pickle.dumps(found.value))  # noqa: S301 (what was written in the same expression)
    assert (str(again), again.layer, again.operation) == (str(found.value), 0, found.value.operation)
    process.ask_for_determinism(warn=True)
    with pytest.warns(UserWarning, match="put_"):
        layer.train({"x": images(layer, shape)}, LABELS, LEARNING)


def filled(layer: LocalLayer, x: Tensor) -> int:
    """How often a training step fills memory with one value."""
    layer.train({"x": x}, LABELS, LEARNING)  # makes what is made once
    with profile(activities=[ProfilerActivity.CPU]) as found:
        layer.train({"x": x}, LABELS, LEARNING)
    return sum(event.count for event in found.key_averages() if event.key == "aten::fill_")


def test_asking_for_determinism_fills_no_memory_that_is_written_anyhow() -> None:
    """By default PyTorch then fills every new tensor with NaN, a kernel each."""
    settings, shape = NETS["ViT"]
    layer = layer_of(settings, CffSettings(), shape)
    x = images(layer, shape)
    before = filled(layer, x)
    fills = deterministic.fill_uninitialized_memory
    try:
        process.ask_for_determinism(warn=False)
        asked = filled(layer, x)
        deterministic.fill_uninitialized_memory = True
        assert filled(layer, x) > before, "the profiler would not have seen them"
    finally:
        torch.use_deterministic_algorithms(False)
        deterministic.fill_uninitialized_memory = fills
    assert asked == before


def test_the_compiler_times_no_kernels() -> None:
    """Each process would choose its own by how fast they were that day, with other bits."""
    compiled(lambda x: x + 1, "on")
    assert torch._inductor.config.deterministic


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_float32_goes_by_tf32_only_where_a_run_asks_for_it(precision: Any) -> None:
    """Convolutions as well, which PyTorch by itself lets round."""
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = precision != "tf32"  # as it must not stay
        process.allow_tf32(precision)
        assert [backend.allow_tf32 for backend in backends] == [precision == "tf32"] * 2
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value
