"""State that layers share and that is no label embedding: the example plug-in, however it is divided."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from launch.cli import main
from pipeline.config.settings import PipelineSettings, Settings
from pipeline.data.augment import Augment
from pipeline.kind import Kind
from pipeline.layers.layer import LocalLayer
from pipeline.layers.shared_state import VALUES, FixedState
from pipeline.methods import BatchPosition, StepContext
from pipeline.nets import MlpSettings
from pipeline.plugins import load_plugin
from pipeline.runtime.history import RunResult
from pipeline.runtime.serial import train_serial
from pipeline.transport import Transport
from tests.conftest import make_run
from tests.support_documents import ROOT
from tests.test_equality import assert_same, through_ray, through_threads
from tests.test_plugins import forget

FILE = ROOT / "examples" / "plugin_hard_classes.py"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def hard() -> Iterator[Settings]:
    """Three layers, two epochs of 20 steps."""
    settings = load_plugin(str(FILE)).PRESETS["hard-classes-fc"].settings
    yield replace(
        settings,
        net=MlpSettings(width=16, depth=3),
        train=replace(settings.train, epochs=2),
        pipeline=PipelineSettings(executor="serial", device="cpu", stall_timeout=60),
    )
    forget("plugin_hard_classes")


def with_lag(settings: Settings, lag: int) -> Settings:
    kind: Any = type(settings.method)
    return replace(settings, method=kind(difficulty_lag=lag))


@cache
def serial(settings: Settings) -> RunResult:
    return train_serial(*make_run(settings))


@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_threads_give_the_serial_bits(hard: Settings, lag: int, stages: int) -> None:
    settings = with_lag(hard, lag)
    assert_same(through_threads(settings, stages), serial(settings))


@pytest.mark.exhaustive  # what Ray adds, test_embedding_equality.py shows for the states that are there
@pytest.mark.parametrize("transport", ["auto", "gloo"])
def test_three_stages_over_ray_give_the_serial_bits(hard: Settings, transport: Transport, cluster: None) -> None:
    settings = replace(hard, pipeline=replace(hard.pipeline, transport=transport))
    assert_same(through_ray(settings, 3), serial(hard))


def test_the_state_is_what_plain_arithmetic_makes_of_the_losses(hard: Settings) -> None:
    """One layer, so that nothing lags but by the setting: the moving average of its losses, step by step."""
    settings = replace(hard, net=MlpSettings(width=16, depth=1), train=replace(hard.train, epochs=1))
    settings = with_lag(settings, 0)
    spec, dataset = make_run(settings)
    assert spec.shared_versions is not None
    state = spec.shared_state()
    layer = LocalLayer(spec, 0, CPU, FixedState(torch.ones(10)))
    layer._shared = source = _Plain(state.values)
    augment = Augment(spec.augment, seed=settings.train.seed, device=CPU)
    for batch in dataset.batches("train", epoch=0, batch_size=64):
        where = BatchPosition(epoch=0, step=batch.step, position=batch.position, training=True)
        views = augment.views(batch.images, epoch=0, position=batch.position, num_views=1)
        layer.train({"x": views}, batch.labels, where)
    assert torch.equal(source.values, serial(settings).last[VALUES])


class _Plain:
    """A state of one layer: each contribution counts at once."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def read(self, layer: int, where: BatchPosition) -> torch.Tensor:
        return self.values

    def push(self, layer: int, step: int, contribution: torch.Tensor) -> None:
        self.values = 0.9 * self.values + (1 - 0.9) * contribution

    def freeze(self, epoch: int) -> None:
        raise AssertionError("asked of a whole run")

    def checkpoint(self, key: str, step: int) -> None:
        raise AssertionError("asked of a whole run")


def test_a_classs_weight_is_its_difficulty(hard: Settings) -> None:
    """By hand: the loss is the mean of weighted cross-entropies, a contribution the mean loss of each class."""
    spec, _ = make_run(hard)
    layer = LocalLayer(spec, 0, CPU, FixedState(torch.ones(10)))
    difficulty = torch.arange(1.0, 11.0)
    labels = torch.tensor([0, 3, 3, 9])
    context = StepContext(labels=labels, where=BatchPosition(training=True), shared=difficulty)
    outputs = layer.forward.outputs({"x": torch.rand(4, *spec.shape)}, context)
    losses = F.cross_entropy(layer.rule.classifier(outputs.own["pooled"]), labels, reduction="none")  # type: ignore[operator]
    weights = torch.tensor([1.0, 4.0, 4.0, 10.0]) / 5.5
    torch.testing.assert_close(layer.rule.loss(layer.net, outputs.own, context), (weights * losses).mean())
    given = layer.rule.contribution(layer.net, outputs.own, context)
    torch.testing.assert_close(given[[0, 3, 9]], torch.stack([losses[0], losses[1:3].mean(), losses[3]]))
    assert torch.equal(given[[1, 2, 4, 5, 6, 7, 8]], difficulty[[1, 2, 4, 5, 6, 7, 8]])


def test_it_is_saved_and_evaluated_like_label_embeddings(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["hard-classes-fc", "--plugin", str(FILE), "--executor", "threads", "--stages", "3"]
    assert main([*arguments, "--run-dir", "run"]) == 0
    said = re.search(r"^test accuracy ([\d.]+)%", capsys.readouterr().out, re.MULTILINE)
    assert said is not None
    assert float(said[1]) > 85
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert saved[VALUES].shape == (10,)
    assert not torch.equal(saved[VALUES], torch.ones(10))
    assert main(["eval", "run"]) == 0
    assert f"{said[1]}%" in capsys.readouterr().out


def test_validation_reads_the_version_that_the_next_step_would(hard: Settings) -> None:
    """Its losses are numbers of weights near 1: the state was there in evaluation too."""
    history = serial(hard).history
    for epoch in history.epochs(Kind.VALIDATE):
        assert all(layer.loss == layer.loss for layer in history.layers(Kind.VALIDATE, epoch) or [])
    assert [layer.version_skew for layer in history.layers(Kind.TRAIN, 1) or []] == [3.0, 2.0, 1.0]
