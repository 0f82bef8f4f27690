"""A folder of somebody's photographs: prepared, trained on, asked about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from launch.cli import main
from pipeline.data.index import DataIndex
from pipeline.data.prepare import prepare

_SIZES = [(320, 240)] * 8 + [(240, 320)] * 3 + [(200, 150)] * 2 + [(100, 90), (96, 96)]
_ONCE = ["--batch-size", "8", "--epochs", "1", "--head-epochs", "1", "--executor", "serial", "--device", "cpu"]
_VIT = ["cff-vit", "--dim", "16", "--heads", "2", "--depth", "2", *_ONCE]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """30 photographs of two classes and five sizes."""
    rng = np.random.default_rng(0)
    root = tmp_path / "photos"
    for name, level in (("day", 200), ("night", 40)):
        (root / name).mkdir(parents=True)
        for number, (width, height) in enumerate(_SIZES):
            pixels = rng.normal(level, 20, (height, width, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.jpg")
    return root


def run(tmp_path: Path, *arguments: str) -> Path:
    """Runs to its end; its folder."""
    folder = tmp_path / "run"
    assert main([*arguments, "--run-dir", str(folder)]) == 0
    return folder


def summary_of(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return read


# Sizes


def test_a_run_says_what_became_of_the_sizes(photos: Path, tmp_path: Path, capsys: Any) -> None:
    run(tmp_path, *_VIT, "--data", str(photos))
    assert (
        "images resized from 320×240 (16 images), 240×320 (6 images), 200×150 (4 images) and 2 other sizes "
        "to 64×64, patch 8, 64 tokens"
    ) in capsys.readouterr().out


def test_a_net_without_patches_is_not_told_of_any(photos: Path, tmp_path: Path, capsys: Any) -> None:
    run(tmp_path, "cff-mlp-mnist", "--width", "16", *_ONCE, "--data", str(photos))
    said = capsys.readouterr().out
    assert "and 2 other sizes to 64×64\n" in said
    assert "token" not in said


def test_a_run_says_how_images_of_one_size_are_cut(tmp_path: Path, capsys: Any) -> None:
    run(tmp_path, *_VIT, "--batch-size", "512")
    said = capsys.readouterr().out
    assert "8×8 images, patch 2, 16 tokens" in said
    assert "resized" not in said


def test_prepare_says_what_became_of_the_sizes(photos: Path, capsys: Any) -> None:
    assert main(["prepare", str(photos)]) == 0
    said = capsys.readouterr().out
    assert "images resized from 320×240 (16 images), " in said
    assert "to 64×64" in said


def test_image_size_also_beyond_the_cap_is_kept_with_the_run(photos: Path, tmp_path: Path, capsys: Any) -> None:
    folder = run(tmp_path, *_VIT, "--data", str(photos), "--image-size", "96")
    assert "to 96×96, patch 12, 64 tokens" in capsys.readouterr().out
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["data"]["image_size"] == 96
    assert config["data"]["shape"] == [3, 96, 96]
    assert main(["eval", str(folder)]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--image-size", "40", "--patch", "1"], "images of 40×40 pixels in patches of 1 are 1,600 tokens each"),
        (["--image-size", "23"], "images of 23×23 pixels in patches of 23 are 1 token each"),
    ],
)
def test_a_size_that_makes_too_many_tokens_or_too_few_is_warned_of(
    photos: Path, tmp_path: Path, capsys: Any, arguments: list[str], says: str
) -> None:
    run(tmp_path, *_VIT, "--data", str(photos), *arguments)
    captured = capsys.readouterr()
    assert says in captured.err
    assert "--image-size" in captured.err


def test_a_run_on_what_an_older_version_prepared_is_still_evaluated(
    photos: Path, tmp_path: Path, data_dir: Path, capsys: Any
) -> None:
    """It brought images to their most common size; the run's own folder has them so."""
    older = prepare(str(photos), data_dir=tmp_path / "older", image_size=20)
    folder = run(tmp_path, *_VIT, "--data", str(older))
    config = json.loads((folder / "config.json").read_text())
    config["settings"]["data"]["data"] = str(photos)
    (folder / "config.json").write_text(json.dumps(config))
    assert DataIndex.load(prepare(str(photos), data_dir=data_dir)).shape == (3, 64, 64)
    assert main(["eval", str(folder)]) == 0
    assert f"{summary_of(folder)['test_accuracy']:.2%}" in capsys.readouterr().out
