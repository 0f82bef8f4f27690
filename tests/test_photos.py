"""A folder of somebody's photographs: prepared, trained on, asked about."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from launch.cli import main
from pipeline.data.index import DataIndex
from pipeline.data.prepare import prepare

_SIZES = [(320, 240)] * 8 + [(240, 320)] * 3 + [(200, 150)] * 2 + [(100, 90), (96, 96)]
_ONCE = ["--batch-size", "8", "--epochs", "1", "--readout-epochs", "1", "--executor", "serial", "--device", "cpu"]
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


# What is left out


@pytest.fixture
def messy(photos: Path) -> Path:
    """The photographs with what such folders hold besides."""
    cut = photos / "day" / "cut.jpg"
    cut.write_bytes((photos / "day" / "0.jpg").read_bytes()[:3000])
    (photos / "night" / "list.png").write_text("milk, eggs")
    (photos / "dusk").mkdir()
    return photos


def test_every_file_that_is_left_out_is_in_the_run_folder_with_its_reason(
    messy: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = run(tmp_path, *_VIT, "--data", str(messy))
    with (folder / "skipped.csv").open() as file:
        rows = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    assert rows.keys() == {str(messy / "day" / "cut.jpg"), str(messy / "night" / "list.png"), str(messy / "dusk")}
    assert rows[str(messy / "day" / "cut.jpg")].startswith("unreadable image: image file is truncated")
    assert rows[str(messy / "dusk")] == "empty class"
    data = summary_of(folder)["data"]
    assert {one["file"]: one["reason"] for one in data["skipped"]} == rows
    assert data["skipped_count"] == 3
    said = capsys.readouterr().err
    assert "3 files of photos left out. " in said
    assert "nreadable image: 2 (night/list.png, day/cut.jpg)" in said
    assert "mpty class: 1 (photos/dusk)" in said
    assert "skipped.csv" in said


def test_prepare_says_what_it_leaves_out_and_where_the_list_is(messy: Path, capsys: Any, data_dir: Path) -> None:
    assert main(["prepare", str(messy)]) == 0
    said = capsys.readouterr().out
    assert "3 files of photos left out. " in said
    listed = said.split("listed in ")[1].split("\n")[0].removesuffix(".")
    assert "list.png" in Path(listed).read_text()


def test_a_shard_that_is_broken_by_now_is_listed_with_the_rest(messy: Path, tmp_path: Path, capsys: Any) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(prepare(str(messy)), copy)
    shard = max(copy.glob("test-*.tar"))
    shutil.copy(shard, copy / "test-000001.tar")
    index = DataIndex.load(copy)
    info = index.splits["test"]
    more = replace(info.shards[0], file="test-000001.tar")
    counts = tuple(2 * count for count in info.class_counts)
    test = replace(info, count=2 * info.count, class_counts=counts, shards=(info.shards[0], more))
    replace(index, splits={**index.splits, "test": test}).save(copy)
    (copy / "test-000001.tar").write_bytes(shard.read_bytes()[:2000])
    folder = run(tmp_path, *_VIT, "--data", str(copy))
    assert f"left out {copy / 'test-000001.tar'}, a broken shard: it is truncated" in capsys.readouterr().err
    data = summary_of(folder)["data"]
    assert data["skipped_count"] == 4
    assert data["skipped"][-1]["file"] == str(copy / "test-000001.tar")
    assert "test-000001.tar" in (folder / "skipped.csv").read_text()


def test_what_an_older_version_left_out_has_no_names(messy: Path, tmp_path: Path, capsys: Any) -> None:
    older = tmp_path / "older"
    shutil.copytree(prepare(str(messy)), older)
    (older / "skipped.csv").unlink()
    folder = run(tmp_path, *_VIT, "--data", str(older))
    assert "3 files of photos left out. Prepared by an older version: names unknown." in capsys.readouterr().err
    data = summary_of(folder)["data"]
    assert (data["skipped"], data["skipped_count"]) == ([], 3)
    assert not (folder / "skipped.csv").exists()


# Predictions


def test_predict_answers_for_the_good_files_and_names_the_bad_ones(
    messy: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(tmp_path, *_VIT, "--data", str(messy))
    capsys.readouterr()
    monkeypatch.chdir(messy)
    files = ["day/0.jpg", "night/list.png", "day/cut.jpg", "nowhere.jpg", "dusk", "night/1.jpg"]
    assert main(["predict", str(folder), *files]) == 2
    captured = capsys.readouterr()
    assert [line.partition(": ")[0] for line in captured.out.splitlines()] == ["day/0.jpg", "night/1.jpg"]
    assert captured.err.splitlines()[0] == "night/list.png: in no format of images that Pillow knows"
    assert captured.err.splitlines()[1].startswith("day/cut.jpg: image file is truncated")
    assert captured.err.splitlines()[2:] == [
        "nowhere.jpg: No such file or directory",
        "dusk: Is a directory",
        "error: 4 of 6 files could not be read.",
    ]


def test_predict_turns_a_photograph_as_training_does(photos: Path, tmp_path: Path, capsys: Any) -> None:
    """The camera notes how it was held; prediction once overlooked it."""
    folder = run(tmp_path, *_VIT, "--data", str(photos))
    ramp = np.linspace(0, 255, 320, dtype=np.uint8)
    upright = Image.fromarray(np.broadcast_to(ramp[:, None, None], (320, 240, 3)).copy())
    held = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter, clockwise
    files = [tmp_path / name for name in ("upright.png", "held.png", "unmarked.png")]
    upright.save(files[0])
    held.save(files[1], exif=exif)
    held.save(files[2])
    capsys.readouterr()
    assert main(["predict", str(folder), *map(str, files)]) == 0
    said = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    assert said[0] == said[1] != said[2]
