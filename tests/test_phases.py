"""Layers that learn one after the other, and readouts that see several layers: the example plug-in, from both sides."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from launch.cli import main
from pipeline.config.settings import PipelineSettings, ReadoutSettings, Settings, TransferDtype
from pipeline.errors import UserError
from pipeline.export import card_of, network_of
from pipeline.kind import Kind
from pipeline.methods import DclSettings
from pipeline.methods.embeddings import EmbeddingSettings
from pipeline.nets import MlpSettings
from pipeline.plugins import load_plugin
from pipeline.runtime.history import RunResult
from pipeline.runtime.serial import train_serial
from pipeline.runtime.threads import train_threads
from pipeline.telemetry.reports import PassReport
from tests.conftest import make_run
from tests.support import Watching
from tests.support_documents import ROOT
from tests.test_equality import assert_same, through_ray, through_threads
from tests.test_plugins import forget

FILE = ROOT / "examples" / "plugin_greedy.py"


@pytest.fixture(scope="module")
def greedy() -> Iterator[Settings]:
    """Three layers, one after the other, two epochs of 20 steps each; one readout on all three."""
    settings = load_plugin(str(FILE)).PRESETS["greedy-fc"].settings
    yield replace(
        settings,
        net=MlpSettings(width=16, depth=3),
        train=replace(settings.train, epochs=2, milestones=(1,)),
        readout=replace(settings.readout, readout_epochs=2),
        pipeline=PipelineSettings(executor="serial", device="cpu", stall_timeout=60),
    )
    forget("plugin_greedy")


def with_method(settings: Settings, **values: object) -> Settings:
    return replace(settings, method=replace(settings.method, **values))


@cache
def serial(settings: Settings) -> RunResult:
    return train_serial(*make_run(settings))


# ---------------------------------------------------------------------------------------------------------------------
# Who learns when


def layer_weights(weights: dict[str, Tensor], layer: int) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if name.startswith(f"layers.{layer}.net.")}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("executor", ["serial", "threads"])
def test_a_layer_learns_in_its_phase_alone(greedy: Settings, executor: Literal["serial", "threads"]) -> None:
    """Weights at the end of every epoch: those of one layer change, and the best of a phase are what it ends with."""
    seen: list[dict[str, Tensor]] = []
    reports: list[PassReport] = []
    for stopped in range(1, 7):
        heard = threading.Event()

        def stop(report: PassReport, heard: threading.Event = heard, stopped: int = stopped) -> None:
            reports.append(report)
            if report.kind is Kind.VALIDATE and report.epoch == stopped - 1 and report.layers[-1].layer == 2:
                heard.set()

        settings = replace(greedy, pipeline=replace(greedy.pipeline, executor=executor))
        train = train_serial if executor == "serial" else train_threads
        seen.append(train(*make_run(settings), Watching(stop, heard.is_set)).weights)
    untouched = train_serial(*make_run(greedy), Watching(interrupted=lambda: True)).weights
    for epoch, weights in enumerate(seen):
        phase = epoch // 2
        before = seen[2 * phase - 1] if phase else untouched
        for layer in range(3):
            assert same(layer_weights(weights, layer), layer_weights(before, layer)) == (layer != phase), (epoch, layer)


def test_reports_of_layers_that_do_not_take_part_have_no_figures(greedy: Settings) -> None:
    history = serial(greedy).history
    for epoch in range(6):
        trained, validated = history.layers(Kind.TRAIN, epoch), history.layers(Kind.VALIDATE, epoch)
        assert trained is not None and validated is not None
        assert [len(layer.losses) > 0 for layer in trained] == [layer == epoch // 2 for layer in range(3)]
        assert [layer.loss == layer.loss for layer in validated] == [layer <= epoch // 2 for layer in range(3)]
        assert [layer.fisher is not None for layer in validated] == [layer <= epoch // 2 for layer in range(3)]
    assert history.epochs(Kind.READOUT) == [6, 7]


def test_milestones_count_from_the_beginning_of_a_phase(greedy: Settings) -> None:
    spec, _ = make_run(greedy)
    assert [spec.epoch_in_phase(epoch) for epoch in range(6)] == [0, 1, 0, 1, 0, 1]
    assert [spec.phase_of(epoch).layers for epoch in (0, 1, 2, 5, 6)] == [
        range(1),
        range(1),
        range(1, 2),
        range(2, 3),
        range(2, 3),
    ]
    places = [spec.batch_position(Kind.TRAIN, epoch, 3) for epoch in (0, 1, 2, 3)]
    assert [(where.step, where.phase_step) for where in places] == [(3, 3), (23, 23), (43, 3), (63, 23)]
    never = serial(replace(greedy, train=replace(greedy.train, milestones=())))
    for layer in range(3):
        whole, halved = (run.history.step_losses()[f"layer {layer + 1}"] for run in (never, serial(greedy)))
        assert len(whole) == len(halved) == 40
        # An epoch from the same weights with the same rate, then one with another: for the layers behind, all differs.
        assert (whole[:20] == halved[:20]).all() == (layer == 0)
        assert not (whole[22:] == halved[22:]).all()


# ---------------------------------------------------------------------------------------------------------------------
# The same bits however it is divided


@pytest.mark.parametrize(
    ("changes", "readout", "stages"),
    [
        ({}, {}, 3),
        ({}, {}, 2),
        ({"layers_at_a_time": 2}, {"readout_layers": "all"}, 3),
        ({}, {"mode": "online", "readout_layers": "all"}, 3),
        ({"layers_at_a_time": 3}, {"mode": "online", "readout_keep": "best"}, 2),
        ({}, {"readout_keep": "best"}, 3),
    ],
)
def test_threads_give_the_serial_bits(
    greedy: Settings, changes: dict[str, object], readout: dict[str, object], stages: int
) -> None:
    settings = with_method(replace(greedy, readout=replace(greedy.readout, **readout)), **changes)  # type: ignore[arg-type]
    assert_same(through_threads(settings, stages), serial(settings))


@pytest.mark.parametrize("transfer_dtype", [pytest.param("fp32", marks=pytest.mark.exhaustive), "bf16"])
def test_three_stages_over_ray_give_the_serial_bits(
    greedy: Settings, transfer_dtype: TransferDtype, cluster: None
) -> None:
    settings = replace(greedy, pipeline=replace(greedy.pipeline, transfer_dtype=transfer_dtype))
    assert_same(through_ray(settings, 3), serial(settings))


# ---------------------------------------------------------------------------------------------------------------------
# What a readout sees


def test_a_readout_sees_the_layers_side_by_side(greedy: Settings) -> None:
    result = serial(greedy)
    spec, dataset = make_run(greedy)
    network = network_of(result.weights, card_of(spec))
    assert list(network.readouts) == ["2"]
    batch = next(dataset.batches("test", epoch=0, batch_size=64))
    with torch.no_grad():
        joined = torch.cat(network.features(batch.images), dim=1)
        assert joined.shape == (64, 3 * 16)
        assert torch.equal(network(batch.images), network.readouts["2"](joined))
    # What the first layers have to say counts: the readout's weights on them do something.
    weights = result.weights["layers.2.readout.linear.weight"]
    assert weights.shape == (10, 48)
    assert (weights[:, :32].abs().mean(dim=0) > 0).all()


def test_the_network_predicts_what_the_run_predicted(greedy: Settings) -> None:
    for readout in (greedy.readout, ReadoutSettings(mode="online", readout_layers="all", readout_lr="lr")):
        settings = replace(greedy, readout=readout)
        spec, dataset = make_run(settings)
        network = network_of(serial(settings).weights, card_of(spec))
        predictions = serial(settings).history.predictions()
        assert predictions is not None
        with torch.no_grad():
            guesses = torch.cat(
                [network(batch.images).argmax(1) for batch in dataset.batches("test", epoch=0, batch_size=64)]
            )
        assert (guesses.numpy() == predictions[:, 2]).all()


def test_the_example_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """As its text says to type it, but for the executor."""
    monkeypatch.chdir(tmp_path)
    assert main(["greedy-fc", "--plugin", str(FILE), "--executor", "threads", "--stages", "3", "--run-dir", "run"]) == 0
    said = capsys.readouterr().out
    assert "one after the other: layers 1 | 2 | 3, 10 epochs each; those that have learned are frozen" in said
    assert "epoch 11/30 (layer 2): loss – " in said
    assert "epoch 30/30 (layer 3): loss – – " in said
    assert float(said.split("test accuracy ")[1].split("%")[0]) > 90


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes of whoever writes a method


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ([range(2)], "must take the 3 layers in order"),
        ([range(2), range(1, 3)], "must take the 3 layers in order"),
        ([range(3), range(0)], "must take the 3 layers in order"),
        ([], "its phases are none"),
    ],
)
def test_phases_that_leave_out_or_repeat_a_layer_are_refused(
    greedy: Settings, phases: list[range], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(greedy.method), "phases", lambda self, num_layers: phases)
    with pytest.raises(UserError, match=said):
        make_run(greedy)


@pytest.mark.parametrize("seen", [(), (0, 3), (2, 2), (-1, 0)])
def test_readouts_that_see_what_is_not_there_are_refused(
    greedy: Settings, seen: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(greedy.method), "readout_inputs", lambda self, index, num_layers: seen)
    with pytest.raises(UserError, match=r"each once\. Mend its readout_inputs"):
        make_run(greedy)


def test_shared_label_embeddings_need_layers_that_learn_together(
    small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = DclSettings(embedding=EmbeddingSettings(embedding_mode="in-turn"))
    monkeypatch.setattr(type(method), "phases", lambda self, count: [range(1), range(1, count)])
    with pytest.raises(UserError, match="learn at the same time"):
        make_run(replace(small_settings, method=method))


def test_a_plan_of_layers_that_learn_in_turn_is_refused(greedy: Settings, capsys: Any) -> None:
    assert main(["greedy-fc", "--plugin", str(FILE), "--partition", "balanced", "--stages", "2"]) == 2
    assert "trains layers one after the other" in capsys.readouterr().err
