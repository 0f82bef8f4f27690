"""Runs of methods with auxiliary nets: the serial bits in any number of stages and after a stop; commands on them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.cli import main
from pipeline import load
from pipeline.config.build import expand_baseline
from pipeline.config.settings import DataSettings, PipelineSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.kind import Kind
from pipeline.methods import AuglocalSettings, DglSettings, InfoproSettings, MethodConfig, PredsimSettings
from pipeline.nets import MlpSettings, NetConfig, ResnetSettings
from pipeline.runtime.edges import edge_bytes
from pipeline.runtime.history import RunResult
from pipeline.runtime.serial import train_serial
from tests.conftest import make_run
from tests.test_equality import assert_same, through_ray, through_threads
from tests.test_resume import assert_all_go_on, serially
from tests.test_resume import through_threads as in_threads

RESNET = ResnetSettings(depth=14, width=4, stem="alone")
FULL = InfoproSettings(reconstruction_first=5, task_first=0.5, reconstruction_last=1, modules=5)


def settings_of(method: MethodConfig, net: NetConfig = RESNET, **others: Any) -> Settings:
    """Digits, seven layers, two epochs of 5 steps, by SGD along a cosine."""
    return Settings(
        data=DataSettings(data="digits", train_fraction=0.25),
        net=net,
        method=method,
        train=TrainSettings(
            epochs=2,
            batch_size=64,
            lr=0.05,
            optimizer="sgd",
            weight_decay=1e-4,
            lr_schedule="cosine",
            warmup_epochs=1,
            keep="accuracy",
        ),
        readout=ReadoutSettings(mode="none"),
        pipeline=PipelineSettings(executor="serial", device="cpu", stall_timeout=60),
        **others,
    )


@cache
def serial(settings: Settings) -> RunResult:
    return train_serial(*make_run(settings))


CASES = {
    "infopro, contrast": settings_of(InfoproSettings()),
    "infopro, reconstruction": settings_of(FULL),
    "infopro, predict": settings_of(InfoproSettings(task="predict", modules=4)),
    "infopro, MLP": settings_of(InfoproSettings(), MlpSettings(width=24, depth=4, dropout=0.1)),
    "infopro, head after": replace(settings_of(FULL), readout=ReadoutSettings(readout_epochs=1)),
    "auglocal": settings_of(AuglocalSettings()),
    "dgl": settings_of(DglSettings()),
    "predsim": settings_of(PredsimSettings()),
}
_EVERY_DAY = {
    ("infopro, contrast", 7),
    ("infopro, reconstruction", 1),
    ("infopro, reconstruction", 3),
    ("infopro, predict", 2),
    ("infopro, MLP", 3),
    ("infopro, head after", 2),
    ("auglocal", 5),
    ("dgl", 3),
    ("predsim", 2),
}


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        pytest.param(name, stages, marks=() if (name, stages) in _EVERY_DAY else pytest.mark.exhaustive)
        for name, settings in CASES.items()
        for stages in sorted({1, 2, 3, settings.method.adapt(settings.net).num_layers})
    ],
)
def test_threads_give_the_serial_bits(name: str, stages: int) -> None:
    assert_same(through_threads(CASES[name], stages), serial(CASES[name]))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "infopro, reconstruction" else pytest.mark.exhaustive) for name in CASES],
)
def test_ray_gives_the_serial_bits(name: str, cluster: None) -> None:
    assert_same(through_ray(CASES[name], 3), serial(CASES[name]))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "infopro, reconstruction" else pytest.mark.exhaustive) for name in CASES],
)
def test_a_run_goes_on_from_every_checkpoint(name: str, tmp_path: Path) -> None:
    """With SGD's momentum and auxiliary nets' batch norms."""
    cuts = assert_all_go_on(CASES[name], in_threads(2), [in_threads(3), serially], tmp_path, every=3)
    assert any(cut.steps for cut in cuts)


def test_channels_carry_the_image_where_it_is_asked_for() -> None:
    """Maps of 4, 4, 8 and 16 channels leave the first four of five modules; an image of 64 bytes goes with three."""
    pipe = replace(CASES["infopro, reconstruction"].pipeline, executor="threads")
    maps = [4 * 8 * 8, 4 * 8 * 8, 4 * 8 * 8, 8 * 4 * 4]  # modules of 1, 1, 1, 2 and 2 layers
    labels_and_ids = 2 * 64 * 8
    for method, image in ((FULL, 64), (replace(FULL, reconstruction_first=0, reconstruction_last=0), 0)):
        spec, _ = make_run(replace(CASES["infopro, reconstruction"], method=method, pipeline=pipe), stages=5)
        images = [image, image, image, 0]
        assert edge_bytes(spec)[1:] == [64 * (4 * m + i) + labels_and_ids for m, i in zip(maps, images, strict=True)]


def test_every_module_with_a_classifier_predicts() -> None:
    def predict(name: str) -> list[bool]:
        return [layer.accuracy is not None for layer in serial(CASES[name]).history.layers(Kind.TEST, 0) or []]

    assert predict("auglocal") == [True] * 5
    assert predict("infopro, contrast") == [False] * 6 + [True]
    assert predict("infopro, head after") == [True] * 5


# ---------------------------------------------------------------------------------------------------------------------
# As a person types it

RUN = [
    *("auglocal-resnet32", "--data", "digits", "--depth", "14", "--width", "4", "--batch-size", "64"),
    *("--lr", "0.1", "--warmup-epochs", "0", "--epochs", "9"),
]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AugLocal on digits in three stages of given sizes, which `launch eval` once could not open."""
    folder = tmp_path_factory.mktemp("auglocal") / "run"
    assert main([*RUN, "--executor", "threads", "--partition", "1", "2", "2", "--run-dir", str(folder)]) == 0
    return folder


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_it_learns_digits_in_every_layer(learned: Path) -> None:
    accuracies = [layer["test_direct_accuracy"] for layer in summary(learned)["layers"]]
    assert len(accuracies) == 5
    assert min(accuracies) > 0.6
    assert accuracies[-1] == summary(learned)["test_accuracy"] > 0.8


def test_a_saved_network_predicts_as_the_run_did(learned: Path, capsys: Any) -> None:
    assert main(["eval", str(learned)]) == 0
    assert f"{summary(learned)['test_accuracy']:.2%}" in capsys.readouterr().out
    network = load(str(learned / "model.safetensors"))
    assert network(torch.zeros(2, *network.shape)).shape == (2, 10)


def test_deep_supervision_is_a_baseline_of_the_same_nets(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main([*RUN, "--epochs", "7", "--baseline", "bp-deep", "--run-dir", str(folder)]) == 0
    assert summary(folder)["net"] == "BP, deeply supervised, ResNet-14, width 4, 5 modules"
    assert len(summary(folder)["layers"]) == 1
    assert summary(folder)["test_accuracy"] > 0.8
    again = tmp_path / "again"
    assert main(["--config", str(folder / "config.json"), "--epochs", "1", "--run-dir", str(again)]) == 0
    assert summary(again)["net"] == summary(folder)["net"]


def test_all_baselines_start_from_the_method_s_net() -> None:
    settings = replace(CASES["auglocal"], baseline="bp-deep")
    deep = expand_baseline(settings).method.adapt(RESNET)
    plain = expand_baseline(replace(settings, baseline="bp")).method.adapt(RESNET)
    torch.manual_seed(0)
    ours = deep.build(0, (3, 8, 8)).state_dict().values()
    torch.manual_seed(0)
    theirs = plain.build(0, (3, 8, 8)).state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
