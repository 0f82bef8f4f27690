"""Runs of IFFCL, FFCL and CaFo: the serial bits in any number of stages and after a stop; every command on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from launch.cli import main
from pipeline import load
from pipeline.config.settings import DataSettings, PipelineSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.methods import CafoSettings, FfclSettings, IffclSettings, MethodConfig
from pipeline.nets import CascadeSettings, MlpSettings, NetConfig, VitSettings
from pipeline.runtime.history import RunResult
from pipeline.runtime.serial import train_serial
from tests.conftest import make_run
from tests.test_equality import assert_same, through_ray, through_threads
from tests.test_ff_runs import assert_refused
from tests.test_resume import assert_all_go_on, serially
from tests.test_resume import through_threads as in_threads

MLP, CASCADE = MlpSettings(width=24, depth=4), CascadeSettings(channels=(4, 6, 8))
NONE = ReadoutSettings(mode="none")
AFTER = ReadoutSettings(readout_epochs=2)


def settings_of(method: MethodConfig, net: NetConfig, readout: ReadoutSettings = NONE) -> Settings:
    """Digits, two epochs of 8 steps, and a smaller batch at the end of each."""
    return Settings(
        data=DataSettings(data="digits", train_fraction=0.4),
        net=net,
        method=method,
        train=TrainSettings(epochs=2, batch_size=64, lr=1e-2, last_batch="keep"),
        readout=readout,
        pipeline=PipelineSettings(executor="serial", device="cpu", stall_timeout=60),
    )


@cache
def serial(settings: Settings) -> RunResult:
    return train_serial(*make_run(settings))


CASES = {
    "iffcl, MLP": settings_of(IffclSettings(), MLP),
    "iffcl, ViT": settings_of(IffclSettings(), VitSettings(dim=16, heads=2, depth=3)),
    "ffcl, MLP": settings_of(FfclSettings(), MLP, AFTER),
    "cafo, closed form": settings_of(CafoSettings(), CASCADE),
    "cafo, cross-entropy": settings_of(CafoSettings(predictor="cross-entropy"), CASCADE),
    "cafo, sparsemax": settings_of(CafoSettings(predictor="sparsemax"), MLP),
}
_EVERY_DAY = {
    ("iffcl, MLP", 4),
    ("iffcl, ViT", 1),
    ("ffcl, MLP", 3),
    ("cafo, closed form", 2),
    ("cafo, cross-entropy", 3),
    ("cafo, sparsemax", 2),
}


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        pytest.param(name, stages, marks=() if (name, stages) in _EVERY_DAY else pytest.mark.exhaustive)
        for name, settings in CASES.items()
        for stages in (1, 2, 3, 4)
        if stages <= settings.net.num_layers
    ],
)
def test_threads_give_the_serial_bits(name: str, stages: int) -> None:
    assert_same(through_threads(CASES[name], stages), serial(CASES[name]))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CASES)
def test_ray_gives_the_serial_bits(name: str, cluster: None) -> None:
    assert_same(through_ray(CASES[name], 3), serial(CASES[name]))


@pytest.mark.parametrize("name", ["iffcl, MLP", "cafo, closed form"])
def test_a_run_goes_on_from_every_checkpoint(name: str, tmp_path: Path) -> None:
    """Also from within an epoch, where a closed form has added up some of the images."""
    cuts = assert_all_go_on(CASES[name], in_threads(2), [in_threads(3), serially], tmp_path, every=5)
    assert any(cut.steps for cut in cuts)
    assert any(cut.passes == 4 for cut in cuts), "and at the end of the layers' training"


# ---------------------------------------------------------------------------------------------------------------------
# As a person types it

DIGITS = ["--data", "digits", "--batch-size", "64", "--executor", "threads"]
RUNS: dict[str, tuple[list[str], float]] = {
    "iffcl": (["iffcl-mlp-mnist", *DIGITS, "--lr", "3e-3", "--epochs", "30", "--stages", "2"], 0.2),
    "cafo": (["cafo-mnist", *DIGITS, "--channels", "16", "32", "--stages", "2"], 0.9),
}


@pytest.fixture(scope="module", params=RUNS)
def learned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that has learned digits, and the accuracy that it has at least."""
    arguments, least = RUNS[request.param]
    folder = tmp_path_factory.mktemp(request.param) / "run"
    assert main([*arguments, "--run-dir", str(folder)]) == 0
    return folder, least


def test_its_network_gives_the_runs_own_predictions(
    learned: tuple[Path, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder, least = learned
    accuracy = json.loads((folder / "summary.json").read_text())["test_accuracy"]
    assert accuracy > least
    assert main(["eval", str(folder)]) == 0
    assert f"{accuracy:.2%}" in capsys.readouterr().out
    assert main(["analyse", str(folder), "--tsne-images", "0"]) == 0
    network = load(folder / "model.safetensors")
    pixels = (255 * torch.rand(*network.shape[1:], generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pixels.numpy()).save("digit.png")
    capsys.readouterr()
    assert main(["predict", str(folder), "digit.png"]) == 0
    assert network.classes[int(network(pixels[None, None]).argmax())] in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


def one_class(folder: Path) -> list[str]:
    (folder / "images" / "a").mkdir(parents=True)
    for number in range(40):
        Image.new("L", (8, 8), number).save(folder / "images" / "a" / f"{number}.png")
    return ["ffcl-mlp-mnist", "--data", str(folder / "images"), "--batch-size", "16"]


def no_labels(folder: Path) -> list[str]:
    (folder / "flat").mkdir()
    for number in range(40):
        Image.new("L", (8, 8), number).save(folder / "flat" / f"{number}.png")
    return ["iffcl-mlp-mnist", "--data", str(folder / "flat"), "--batch-size", "16"]


def typed(*arguments: str) -> Callable[[Path], list[str]]:
    return lambda folder: [*arguments, "--data", "digits", "--batch-size", "64"]


MISTAKES: dict[str, tuple[Callable[[Path], list[str]], list[str]]] = {
    "one class": (one_class, ["1 classes", "at least 2"]),
    "no labels": (no_labels, ["flat holds images without classes", "one sub-folder of images for each class"]),
    "no margin": (typed("ffcl-mlp-mnist", "--pair-margin", "1"), ["--pair-margin 1", "below 1"]),
    "no ridge": (typed("cafo-mnist", "--ridge", "0"), ["--ridge 0", "above 0"]),
    "too many blocks": (typed("cafo-mnist", "--channels", "4", "4", "4", "4"), ["--channels 4 4 4 4", "fewer blocks"]),
    "stages of the whole net": (
        typed("ffcl-mlp-mnist", "--scope", "global", "--stages", "2"),
        ["--stages 2", "this net has 1 layer"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    arguments, said = MISTAKES[mistake]
    given = [*arguments(tmp_path), "--executor", "serial" if mistake != "stages of the whole net" else "threads"]
    (tmp_path / "here").mkdir()
    assert_refused(given, said, tmp_path / "here", monkeypatch, capsys)
