"""Runs of SCFF: the serial bits in any number of stages and after a stop; without labels; backprop from its weights."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from launch.cli import main
from launch.output.open_run import open_run
from pipeline import load
from pipeline.config.build import build_run, expand_baseline, open_data
from pipeline.config.devices import local_devices
from pipeline.config.settings import (
    AugmentSettings,
    DataSettings,
    PipelineSettings,
    ReadoutSettings,
    Settings,
    TrainSettings,
)
from pipeline.layers.layer import LocalLayer
from pipeline.methods import BatchPosition, ScffSettings, StepContext
from pipeline.nets import BirnnSettings, NetConfig, PairedConvSettings, PairedMlpSettings
from pipeline.runtime.history import RunResult
from pipeline.runtime.initial import InitialWeights, begun
from pipeline.runtime.serial import train_serial
from tests.conftest import make_run
from tests.support import CPU
from tests.test_equality import assert_same, through_ray, through_threads
from tests.test_ff_runs import assert_refused
from tests.test_resume import assert_all_go_on, serially
from tests.test_resume import through_threads as in_threads

MLP = PairedMlpSettings(width=24, depth=4, pairing=("anew", "passed", "passed", "anew"))
CONV = PairedConvSettings(channels=(4, 6), kernel=(5, 3), pools=("max", "average"), pairing=("anew", "passed"))
BIRNN = BirnnSettings(width=10, depth=3, pairing=("anew", "anew", "passed"), activation=("relu", "triangle", "relu"))
METHOD = ScffSettings(positive_threshold=(1.0,), negative_threshold=(2.0,), goodness_penalty=(0.01,))
IN_TURN = replace(METHOD, layer_order="in-turn", views=2, lr_gamma=(0.5,), gamma_steps=(3,))


def settings_of(net: NetConfig, method: ScffSettings) -> Settings:
    """Digits, cropped at random, two epochs of 4 steps (a phase); then a readout on all layers, of plain images, with
    dropout and a falling rate."""
    return Settings(
        data=DataSettings(data="digits", train_fraction=0.2),
        net=net,
        method=method,
        augment=AugmentSettings(crop_padding=1),
        train=TrainSettings(epochs=2, batch_size=64, lr=1e-2, keep="last"),
        readout=ReadoutSettings(
            readout_layers="last",
            readout_norm=False,
            readout_epochs=2,
            readout_keep="best",
            readout_views="plain",
            readout_milestones=(0.5,),
            readout_dropout=0.2,
        ),
        pipeline=PipelineSettings(executor="serial", device="cpu", stall_timeout=60),
    )


@cache
def serial(settings: Settings) -> RunResult:
    return train_serial(*make_run(settings))


CASES = {
    "mlp, together": settings_of(MLP, METHOD),
    "mlp, in turn": settings_of(MLP, IN_TURN),
    "mlp, anew, a readout of two": settings_of(replace(MLP, pairing=("anew",)), replace(METHOD, readout_span=2)),
    "conv, together": settings_of(CONV, METHOD),
    "conv, in turn": settings_of(CONV, IN_TURN),
    "rnn, together": settings_of(BIRNN, METHOD),
    "rnn, in turn": settings_of(BIRNN, IN_TURN),
}
_EVERY_DAY = {
    ("mlp, together", 4),
    ("mlp, in turn", 3),
    ("mlp, anew, a readout of two", 1),
    ("conv, together", 2),
    ("conv, in turn", 2),
    ("rnn, together", 3),
    ("rnn, in turn", 2),
}


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        pytest.param(name, stages, marks=() if (name, stages) in _EVERY_DAY else pytest.mark.exhaustive)
        for name, settings in CASES.items()
        for stages in range(1, settings.net.num_layers + 1)
    ],
)
def test_threads_give_the_serial_bits(name: str, stages: int) -> None:
    assert_same(through_threads(CASES[name], stages), serial(CASES[name]))


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        pytest.param(name, stages, marks=() if (name, stages) == ("mlp, in turn", 3) else pytest.mark.exhaustive)
        for name, stages in (
            ("mlp, together", 3),
            ("mlp, in turn", 3),
            ("conv, together", 2),
            ("conv, in turn", 2),
            ("rnn, together", 3),
            ("rnn, in turn", 2),
        )
    ],
)
def test_ray_gives_the_serial_bits(name: str, stages: int, cluster: None) -> None:
    assert_same(through_ray(CASES[name], stages), serial(CASES[name]))


@pytest.mark.parametrize(
    "name",
    [
        "mlp, in turn",
        *(
            pytest.param(name, marks=pytest.mark.exhaustive)
            for name in ("conv, together", "rnn, together", "rnn, in turn")
        ),
    ],
)
def test_a_run_goes_on_from_every_checkpoint(name: str, tmp_path: Path) -> None:
    cuts = assert_all_go_on(CASES[name], in_threads(2), [in_threads(1), serially], tmp_path, every=3)
    phases = CASES[name].net.num_layers if name.endswith("in turn") else 1
    within = {len(cut.restored) for cut in cuts if cut.steps}
    assert within == set(range(phases + 1)), "in every phase, and in the readout's training"


# ---------------------------------------------------------------------------------------------------------------------
# As a person types it

RUN = ["scff-mlp-mnist", "--data", "digits", "--crop-padding", "0", "--batch-size", "64", "--width", "128"]
THREADS = ["--executor", "threads", "--stages", "2"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layer after layer on digits, and a readout of each layer on it and those before."""
    folder = tmp_path_factory.mktemp("scff") / "run"
    arguments = ["--epochs", "5", "--readout-epochs", "20", "--readout-lr", "1e-2", "--readout-layers", "all"]
    assert main([*RUN, *THREADS, *arguments, "--run-dir", str(folder)]) == 0
    return folder


def summary_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_it_learns_digits_and_each_layer_adds_to_the_readout(learned: Path) -> None:
    assert all(layer["test_accuracy"] > 0.85 for layer in summary_of(learned)["layers"])
    noted = [json.loads(line) for line in (learned / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in noted if "goodness_positive" in line][-1]
    assert last["goodness_positive"] > last["goodness_negative"]
    weights = load_file(learned / "model.safetensors")
    assert [weights[f"layers.{index}.readout.linear.weight"].shape for index in range(2)] == [(10, 128), (10, 256)]


def test_the_last_epoch_is_kept_so_no_images_choose_one(learned: Path, capsys: Any) -> None:
    """Although all training images are trained on, and the test images are what is looked at meanwhile."""
    summary = summary_of(learned)
    assert summary["selected_on"] is None
    assert summary["data"]["train"] == 1438  # none of the 1,797 is kept back but the 359 of the test
    assert main([*RUN, *THREADS, "--dry-run"]) == 0
    assert "the test images choose nothing: all training images are trained on" in capsys.readouterr().out
    assert main([*RUN, *THREADS, "--keep", "loss", "--dry-run"]) == 0
    assert "the test images choose the epoch that is kept" in capsys.readouterr().out


def test_a_layer_whose_rate_is_0_keeps_its_random_weights(tmp_path: Path) -> None:
    """What a net that has not learned is worth, as what learning is compared with."""
    run, asked = tmp_path / "run", ["--layer-lr", "0", "--epochs", "1", "--readout-epochs", "1"]
    arguments = ["scff-birnn-fsdd", "--data", "digits", "--width", "16", "--depth", "2", *THREADS, *asked]
    assert main([*arguments, "--run-dir", str(run)]) == 0
    spec = open_run(run).spec
    for index in range(2):
        weights = load_file(run / "model.safetensors")
        for name, begun_with in LocalLayer(spec, index, CPU).net.state_dict().items():
            assert torch.equal(weights[f"layers.{index}.net.{name}"], begun_with)


def test_eval_predict_and_export_give_the_runs_own_predictions(learned: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["eval", str(learned)]) == 0
    assert f"{summary_of(learned)['test_accuracy']:.2%}" in capsys.readouterr().out
    assert main(["export", str(learned), str(tmp_path / "scff.safetensors")]) == 0
    network = load(tmp_path / "scff.safetensors")
    pixels = torch.randint(0, 256, (1, *network.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels[0, 0].numpy()).save(tmp_path / "digit.png")
    capsys.readouterr()
    assert main(["predict", str(learned), str(tmp_path / "digit.png")]) == 0
    assert network.classes[int(network(pixels).argmax())] in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# Backprop of the whole net


FINE_TUNED = ["--executor", "serial", "--baseline", "bp", "--init-from"]


def test_fine_tuning_begins_with_what_the_run_predicts(learned: Path) -> None:
    opened = open_run(learned)
    train = replace(opened.spec.settings.train, init_from=str(learned))
    asked = expand_baseline(replace(opened.spec.settings, baseline="bp", train=train))
    spec = build_run(asked, local_devices("cpu", 1), dataset=open_data(asked))
    layer = LocalLayer(begun(spec, InitialWeights.asked_for(asked)), 0, CPU)
    batch = next(opened.dataset.batches("test", epoch=0, batch_size=32))
    network = load(learned / "model.safetensors")
    context = StepContext(labels=batch.labels, where=BatchPosition())
    with torch.no_grad():
        images = (255 * (batch.images.float() / 255) / 255 - network.card.mean[0]) / network.card.std[0]
        outputs = layer.rule(layer.net.eval(), {"x": images}, context)
        scores = layer.rule.scores(layer.net, outputs, context)
    assert scores is not None
    torch.testing.assert_close(scores, network(batch.images), rtol=1e-4, atol=1e-4)


def test_fine_tuning_improves_on_the_run(learned: Path, tmp_path: Path, capsys: Any) -> None:
    tuned = tmp_path / "tuned"
    arguments = [*RUN, *FINE_TUNED, str(learned), "--lr", "1e-3", "--epochs", "3"]
    assert main([*arguments, "--run-dir", str(tuned)]) == 0
    said = capsys.readouterr().out
    assert "BP paired MLP[128 2]" in said and "its layers and classifier begin with the weights of" in said
    assert summary_of(tuned)["test_accuracy"] >= summary_of(learned)["test_accuracy"]
    assert main(["eval", str(tuned)]) == 0


# ---------------------------------------------------------------------------------------------------------------------
# Images without classes


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred images right in a folder."""
    folder, random = tmp_path_factory.mktemp("loose"), np.random.default_rng(0)
    for number in range(100):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def test_images_without_classes_train_and_what_needs_classes_is_left_out_and_said(
    loose: Path, tmp_path: Path, capsys: Any
) -> None:
    run = tmp_path / "run"
    arguments = ["scff-conv-cifar10", "--data", str(loose), "--channels", "4", "6", "8", *THREADS]
    assert main([*arguments, "--batch-size", "16", "--epochs", "1", "--run-dir", str(run)]) == 0
    said = capsys.readouterr().out
    assert "without two classes there are no readouts, no accuracy and no Fisher criterion" in said
    assert "No test accuracy: the run has no readouts." in said
    summary = summary_of(run)
    assert summary["status"] == "finished"
    assert all(layer["validation_loss"] > 0 for layer in summary["layers"])
    assert {summary["test_accuracy"], *(layer["test_fisher"] for layer in summary["layers"])} == {None}
    assert main(["eval", str(run)]) == 0
    assert "This run has no readouts, so it has no accuracy." in capsys.readouterr().out
    assert main(["analyse", str(run), "--tsne-images", "0"]) == 0
    assert "Fisher" not in capsys.readouterr().out
    (told,) = run.glob("analysis*/analysis.json")
    assert {
        layer[name] for layer in json.loads(told.read_text())["layers"] for name in ("fisher", "fisher_validation")
    } == {None}
    features = load(run / "model.safetensors").features(torch.rand(2, 3, 16, 16))
    assert [one.shape for one in features] == [(2, 4), (2, 6), (2, 8)]
    assert main(["predict", str(run), str(loose / "0.png")]) == 2
    assert "its run has none" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes

_DIGITS = [*RUN, "--executor", "serial"]
MISTAKES = {
    "a batch of one": ([*_DIGITS, "--batch-size", "1"], ["--batch-size 1", "at least 2"]),
    "a last batch of one": (
        [*_DIGITS, "--last-batch", "keep", "--batch-size", "479"],
        ["--last-batch keep", "the last batch has 1", "--last-batch drop"],
    ),
    "three rates for two layers": (
        [*_DIGITS, "--layer-lr", "1", "0.5", "0.1"],
        ["--layer-lr 1.0 0.5 0.1", "3 values for a net of 2 layers"],
    ),
    "images too small": (
        ["scff-conv-cifar10", "--data", "digits", "--executor", "serial"],
        ["8×8 pixels", "at least 16", "--channels", "--image-size"],
    ),
    "no pairs to pass": ([*_DIGITS, "--pairing", "passed", "anew"], ["--pairing passed", "anew"]),
    "more than the net": (["ff-mlp-mnist", *RUN[1:], *FINE_TUNED, "RUN"], ["--init-from RUN", "more than the net"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    arguments, said = MISTAKES[mistake]
    assert_refused(arguments, said, tmp_path, monkeypatch, capsys)


def test_a_run_of_another_net_is_no_beginning(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    begun = [*FINE_TUNED, str(learned)]
    said = ["--width 128 there, 64 here", "same settings"]
    assert_refused([*RUN, *begun, "--width", "64"], said, tmp_path, monkeypatch, capsys)


def test_a_classifier_that_sees_other_layers_than_the_run_s_readout_begins_anew(learned: Path, capsys: Any) -> None:
    assert main([*RUN, *FINE_TUNED, str(learned), "--readout-span", "1", "--dry-run"]) == 0
    assert "its layers begin with the weights of" in capsys.readouterr().out


def test_a_method_that_learns_from_classes_refuses_images_without_them(
    loose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    arguments = ["cff-vit", "--data", str(loose), "--batch-size", "16", "--executor", "serial"]
    said = ["images without classes", "method cff", "one sub-folder", "scff-mlp-mnist"]
    assert_refused(arguments, said, tmp_path, monkeypatch, capsys)
