"""Runs of FF, SymBa and FF Collab: the serial bits in any number of stages and after a stop; every command on them."""

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
from pipeline.config.settings import DataSettings, PipelineSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.layers.shared_state import VALUES
from pipeline.methods import CollabSettings, FfSettings, MethodConfig, SymbaSettings
from pipeline.nets import ConvSettings, MlpSettings, NetConfig, VitSettings
from pipeline.runtime.edges import edge_bytes
from pipeline.runtime.history import RunResult
from pipeline.runtime.serial import train_serial
from tests.conftest import make_run
from tests.test_equality import assert_same, through_ray, through_threads
from tests.test_resume import assert_all_go_on, serially
from tests.test_resume import through_threads as in_threads

VIT, MLP = VitSettings(dim=16, heads=2, depth=4), MlpSettings(width=24, depth=4)
EXACT = CollabSettings(goodness_sync="exact")


def settings_of(method: MethodConfig, net: NetConfig = MLP) -> Settings:
    """Digits, four layers, two epochs of 8 steps; then a head on all layers but the first."""
    return Settings(
        data=DataSettings(data="digits", train_fraction=0.4),
        net=net,
        method=method,
        train=TrainSettings(epochs=2, batch_size=64, lr=1e-2),
        readout=ReadoutSettings(readout_layers="last", readout_epochs=2, readout_keep="best"),
        pipeline=PipelineSettings(executor="serial", device="cpu", stall_timeout=60),
    )


@cache
def serial(settings: Settings) -> RunResult:
    return train_serial(*make_run(settings))


CASES = {
    "ff, MLP": settings_of(FfSettings()),
    "ff, ViT": settings_of(FfSettings(), VIT),
    "ff, conv": settings_of(FfSettings(), ConvSettings(channels=(4, 6, 8, 8), first_padding=1)),
    "symba, ViT": settings_of(SymbaSettings(), VIT),
    "ff-collab, MLP": settings_of(CollabSettings(goodness_lag=3)),
    "ff-collab, ViT": settings_of(CollabSettings(), VIT),
    "ff-collab, exact": settings_of(EXACT),
}
_EVERY_DAY = {
    ("ff, MLP", 1),
    ("ff, ViT", 2),
    ("ff, conv", 4),
    ("symba, ViT", 3),
    ("ff-collab, MLP", 4),
    ("ff-collab, ViT", 3),
    ("ff-collab, exact", 2),
}


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        pytest.param(name, stages, marks=() if (name, stages) in _EVERY_DAY else pytest.mark.exhaustive)
        for name in CASES
        for stages in (1, 2, 3, 4)
    ],
)
def test_threads_give_the_serial_bits(name: str, stages: int) -> None:
    assert_same(through_threads(CASES[name], stages), serial(CASES[name]))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "ff-collab, MLP" else pytest.mark.exhaustive) for name in CASES],
)
def test_ray_gives_the_serial_bits(name: str, cluster: None) -> None:
    assert_same(through_ray(CASES[name], 3), serial(CASES[name]))


@pytest.mark.exhaustive  # test_embedding_equality.py has label embeddings go so every day
@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("ff-collab")])
def test_goodness_that_no_memory_is_shared_for_gives_the_serial_bits(name: str, stages: int, cluster: None) -> None:
    settings = CASES[name]
    far = replace(settings, pipeline=replace(settings.pipeline, transport="gloo"))
    assert_same(through_ray(far, stages), serial(settings))


@pytest.mark.parametrize("name", ["symba, ViT", "ff-collab, MLP"])
def test_a_run_goes_on_from_every_checkpoint(name: str, tmp_path: Path) -> None:
    cuts = assert_all_go_on(CASES[name], in_threads(2), [in_threads(3), serially], tmp_path, every=5)
    assert any(cut.restored and cut.steps for cut in cuts)  # within the head's training
    assert any(not cut.restored and cut.steps for cut in cuts)


def test_channels_have_room_for_every_image_with_every_label() -> None:
    """A ViT of 17 tokens: each image ten times and once with the neutral label, goodness, and what the head sees."""
    pipe = replace(CASES["ff, ViT"].pipeline, executor="threads")
    spec, _ = make_run(replace(CASES["ff, ViT"], pipeline=pipe), stages=4)
    copies, seen, goodness, labels_and_ids = 64 * 11 * 17 * 16 * 4, 64 * 16 * 4, 64 * 10 * 4, 2 * 64 * 8
    after = [copies + layer * seen + (layer + 1) * goodness + labels_and_ids for layer in range(3)]
    assert edge_bytes(spec)[1:] == after


# ---------------------------------------------------------------------------------------------------------------------
# As a person types it

RUN = [
    "ff-mlp-mnist",
    "--data",
    "digits",
    "--batch-size",
    "64",
    "--width",
    "64",
    "--executor",
    "threads",
    "--stages",
    "3",
]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forward-Forward on digits, then a head: half a minute of one core."""
    folder = tmp_path_factory.mktemp("ff") / "run"
    arguments = ["--epochs", "40", "--readout", "after", "--readout-epochs", "10", "--readout-lr", "5e-3"]
    assert main([*RUN, *arguments, "--run-dir", str(folder)]) == 0
    return folder


def layers(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "summary.json").read_text())["layers"]
    return found


def test_it_learns_digits_by_goodness_and_by_its_head(learned: Path) -> None:
    assert [layer["test_accuracy"] is None for layer in layers(learned)] == [True, True, False]
    assert layers(learned)[-1]["test_accuracy"] > 0.6
    assert layers(learned)[-1]["test_direct_accuracy"] > 0.4
    noted = [json.loads(line) for line in (learned / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in noted if "goodness_right" in line][-1]
    assert last["goodness_right"] > last["goodness_wrong"]


def test_eval_and_predict_and_export_give_the_run_s_own_predictions(learned: Path, tmp_path: Path, capsys: Any) -> None:
    accuracy = json.loads((learned / "summary.json").read_text())["test_accuracy"]
    assert main(["eval", str(learned)]) == 0
    assert f"{accuracy:.2%}" in capsys.readouterr().out
    assert main(["export", str(learned), str(tmp_path / "ff.safetensors")]) == 0
    network = load(tmp_path / "ff.safetensors")
    images = torch.rand(4, *network.shape, generator=torch.Generator().manual_seed(0))
    by_head, by_goodness = network(images), network.direct_scores(images)[-1]
    assert by_goodness is not None
    assert by_head.shape == by_goodness.shape == (4, 10)
    assert not torch.equal(by_head, by_goodness)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        pixels = (255 * images[0, 0]).round().to(torch.uint8)
        Image.fromarray(pixels.numpy()).save("digit.png")
        capsys.readouterr()
        assert main(["predict", str(learned), "digit.png"]) == 0
    guess = network(pixels[None, None]).argmax()
    assert "digit.png" in (said := capsys.readouterr().out)
    assert network.classes[int(guess)] in said


def test_analyse_draws_goodness_beside_what_other_methods_have(learned: Path) -> None:
    assert main(["analyse", str(learned), "--tsne-images", "0"]) == 0
    numbers = json.loads((learned / "analysis" / "analysis.json").read_text())
    assert "goodness.png" in numbers["pictures"]
    for of_layer, of_run in zip(numbers["layers"], layers(learned), strict=True):
        assert of_layer["direct_accuracy"] == pytest.approx(of_run["test_direct_accuracy"])
        assert of_layer["goodness_right"] > of_layer["goodness_wrong"]
    network, (images, labels) = load(learned / "model.safetensors"), digits_of(learned)
    with torch.no_grad():
        goodness = [layer.goodness for layer in network.outputs(images)][-1]
    assert goodness is not None
    right = sum(float(goodness[n, label]) for n, label in enumerate(labels)) / len(labels)
    wrong = (float(goodness.double().sum()) - right * len(labels)) / len(labels) / 9
    assert numbers["layers"][-1]["goodness_right"] == pytest.approx(right, rel=1e-4)
    assert numbers["layers"][-1]["goodness_wrong"] == pytest.approx(wrong, rel=1e-4)


def digits_of(run: Path) -> tuple[torch.Tensor, list[int]]:
    """Test images and labels of a run."""
    (batch,) = open_run(run).dataset.batches("test", epoch=0, batch_size=1000)
    return batch.images, batch.labels.tolist()


def test_without_a_head_the_network_predicts_by_goodness(tmp_path: Path, capsys: Any) -> None:
    arguments = ["ff-collab-mlp-mnist", *RUN[1:], "--epochs", "2", "--run-dir", str(tmp_path / "run")]
    assert main(arguments) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test_accuracy"] == summary["layers"][-1]["test_direct_accuracy"]
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert saved[VALUES].shape == (3, 2)
    assert saved[VALUES].all()
    network = load(tmp_path / "run" / "model.safetensors")
    images = torch.rand(4, *network.shape)
    assert torch.equal(network(images), network.direct_scores(images)[-1])  # type: ignore[arg-type]
    assert main(["eval", str(tmp_path / "run")]) == 0
    assert f"{summary['test_accuracy']:.2%}" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes

_VIT = ["ff-vit-mnist", "--data", "digits", "--batch-size", "64", "--executor", "serial"]
MISTAKES = {
    "class token": ([*_VIT, "--pooling", "token"], ["--pooling token", "--pooling mean"]),
    "online readout": ([*_VIT, "--readout", "online"], ["--readout online", "ff", "--readout after", "--readout none"]),
    "no threshold": ([*_VIT, "--threshold", "0"], ["--threshold 0", "above 0"]),
    "no rate": ([*_VIT, "--later-lr", "0"], ["--later-lr 0", "above 0"]),
    "no label": ([*_VIT, "--label-scale", "0"], ["--label-scale 0", "above 0"]),
    "no sharpness": (["symba-vit-mnist", *_VIT[1:], "--sharpness", "-1"], ["--sharpness -1", "above 0"]),
    "lag below 0": (["ff-collab-vit-mnist", *_VIT[1:], "--goodness-lag", "-1"], ["--goodness-lag -1", "at least 0"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    arguments, said = MISTAKES[mistake]
    assert_refused(arguments, said, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("classes", "side", "said"),
    [(1, 8, ["1 classes", "at least 2"]), (5, 2, ["2×2 pixels", "5 classes", "--image-size", "Vision Transformer"])],
)
def test_images_that_cannot_be_learned_are_refused(
    classes: int, side: int, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    random = np.random.default_rng(0)
    for name in "abcde"[:classes]:
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(40):
            pixels = random.integers(0, 256, (side, side), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    arguments = [
        "ff-mlp-mnist",
        "--data",
        str(tmp_path / "images"),
        "--image-size",
        str(side),
        "--batch-size",
        "16",
        "--executor",
        "serial",
    ]
    (tmp_path / "here").mkdir()
    assert_refused(arguments, said, tmp_path / "here", monkeypatch, capsys)


def assert_refused(
    arguments: list[str], said: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(folder)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert all(part in error for part in said), error
    assert not list(folder.iterdir()), "a refused run leaves nothing"
