"""What torch.compile makes of layers: one graph for each shape of layer, none anew as training goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from pipeline.layers.layer import LocalLayer
from pipeline.methods import BatchPosition, CffSettings, DclSettings, MethodConfig
from pipeline.nets import ConvSettings, MlpSettings, NetConfig, VitSettings
from pipeline.runtime import process
from tests.support import CPU, changed, tiny_spec
from tests.test_determinism import layer_of

LABELS = torch.tensor([0, 1, 2, 0])
_PROCESSES = "TORCHINDUCTOR_COMPILE_THREADS"
SHAPE = (1, 8, 8)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is compiled is traced as ever, and run as it is: which graphs there are does not depend on their kernels."""
    compile_ = torch.compile

    def traced(function: Any, **values: Any) -> Any:
        return compile_(function, dynamic=values["dynamic"], backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


NETS: dict[str, tuple[NetConfig, int]] = {
    "ViT": (VitSettings(dim=8, heads=2, depth=4, patch=2), 2),
    "MLP": (MlpSettings(width=8, depth=4), 2),
    "conv": (ConvSettings(channels=(4, 6, 8)), 3),
}
"""A net, and how many shapes of layer it has."""


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("method", [CffSettings(), DclSettings()])
def test_layers_of_one_shape_share_a_graph_and_training_makes_no_more(
    counted: None, net: str, method: MethodConfig
) -> None:
    settings, shapes = NETS[net]
    layers = [compiled_layer(settings, method, index) for index in range(settings.num_layers)]
    for step in range(3):
        learn(layers, step)
        assert counters["stats"]["unique_graphs"] == shapes, f"step {step + 1}"
    assert not counters["graph_break"]


def test_a_step_that_is_captured_runs_what_was_compiled(counted: None) -> None:
    """Nothing is compiled anew in a capture, where it could not be; the position that a step sees there is another."""
    layer = compiled_layer(NETS["MLP"][0], CffSettings(), 0)
    layer._decide_on_device()
    work, x = layer._work(), torch.randn(2 * len(LABELS), *SHAPE)
    for number in range(3):
        work.begin(number)
        context = work.context(LABELS)
        work.update(work.forward({"x": x}, context), context)
        assert counters["stats"]["unique_graphs"] == 1
    learn([layer], 3)
    assert counters["stats"]["unique_graphs"] == 1


def compiled_layer(net: NetConfig, method: MethodConfig, index: int) -> LocalLayer:
    plain = layer_of(net, method, SHAPE, index)
    spec = changed(plain._spec, "pipeline", compile="on")
    layer = LocalLayer(spec, index, CPU, plain._shared)
    layer._contributes = False
    return layer


def learn(layers: list[LocalLayer], step: int) -> None:
    activations = {"x": torch.randn(len(LABELS) * layers[0].rule.num_views, *SHAPE)}
    for layer in layers:
        activations, _ = layer.train(activations, LABELS, BatchPosition(step=step, training=True))


@pytest.mark.parametrize(
    ("cores", "stages", "given", "processes"), [(64, 3, None, "21"), (2, 3, None, "1"), (64, 3, "5", "5")]
)
def test_stages_that_compile_share_the_cores(
    cores: int, stages: int, given: str | None, processes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself the compiler starts a process for each core, in every stage."""
    monkeypatch.setenv(_PROCESSES, given or "")
    if given is None:
        monkeypatch.delenv(_PROCESSES)
    monkeypatch.setattr(process, "num_cores", lambda: cores)
    spec = tiny_spec(stages=3)
    process.configure_process(spec, CPU)
    assert os.environ.get(_PROCESSES) == given, "nothing is compiled"
    process.configure_process(changed(spec, "pipeline", compile="on", executor="ray"), CPU)
    assert os.environ[_PROCESSES] == processes
