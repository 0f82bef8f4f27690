"""`launch top`, `launch runs`, `launch compare`: what a person sees of runs that go on, are over, or were cut off."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from rich.console import Console

from launch import train
from launch.cli import main
from launch.output import live
from launch.output.live import Now, StageNow
from tests.support_cli import launch
from tests.support_ray import ray_head

_SMALL: dict[str, Any] = {
    "data": "digits",
    "executor": "serial",
    "dim": 16,
    "heads": 2,
    "depth": 2,
    "max_steps": 12,
    "readout_epochs": 1,
    "quiet": True,
}


def now(**more: Any) -> Now:
    stages = [
        StageNow(
            stage=stage,
            layers=str(stage),
            device="cpu",
            images_per_second=1234.5,
            utilisation=0.5,
            shares={"wait_in": 0.25, "wait_out": 0.125, **more},
            queue=1,
            memory=3 << 20,
            losses=[1.25, None],
        )
        for stage in (1, 2)
    ]
    return Now(title="cff on digits", at=0.0, step=30, steps=120, queue_depth=2, limit="stage 2 limits", stages=stages)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts the tests may have a narrow terminal."""
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two learning rates, three seeds each."""
    folder = tmp_path_factory.mktemp("runs")
    for name, lr in (("a", 4e-3), ("b", 1e-5)):
        for seed in range(3):
            train("cff-vit", **_SMALL, lr=lr, seed=seed, run_dir=folder / f"{name}{seed}")
    return folder


def test_the_live_table_has_what_the_terminal_has_room_for() -> None:
    def shown(width: int, **more: Any) -> str:
        console = Console(width=width)
        with console.capture() as captured:
            console.print(live.picture(now(**more), width))
        assert max(len(line) for line in captured.get().splitlines()) <= width
        assert "…" not in captured.get(), "no heading and no figure is cut"
        return captured.get()

    wide = shown(120)
    for text in ("1,234", "50%", "25%", "12%", "1/2", " 3 ", "1.250", "stage 2 limits"):  # 12.5 % to the even number
        assert text in wide, text
    assert "sync" not in wide and "sync" in shown(120, sync=0.1)
    assert "kernel" not in wide
    gpu = now()
    gpu.stages[1] = replace(gpu.stages[1], launching={"issue ms": 1.8, "kernel ms": 0.9})
    console = Console(width=160)
    with console.capture() as captured:
        console.print(live.picture(gpu, 160))
    assert "issue/kernel ms" in captured.get() and "1.80 / 0.90" in captured.get()
    usual = shown(80)
    assert "25%" in usual and "1.250" in usual and "MiB" not in usual
    narrow = shown(45)
    assert "50%" in narrow and "25%" not in narrow and "stage 2 limits" in narrow


def test_what_a_run_leaves_of_itself_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    assert live.read(tmp_path) is None
    live.write(tmp_path, now())
    assert live.read(tmp_path) == now()
    file = tmp_path / live.NOW
    for content in ("", "{", json.dumps({"title": 3}), file.read_text().replace('"step":30', '"step":"x"')):
        file.write_text(content)
        assert live.read(tmp_path) is None


@pytest.mark.slow
def test_a_run_is_watched_from_another_terminal(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--dim", "16", "--heads", "2", "--depth", "2", "--epochs", "100000", "--executor", "threads"]
    begun = launch(tmp_path, "cff-vit", *flags, "--stages", "2", "--run-dir", str(run))
    begun.wait_for("epoch 3/")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    watching = launch(elsewhere, "top", str(run))
    assert watching.finish() == 0, watching.text()
    for text in ("cff-vit on digits", "utilisation", "wait-out", "stage ", " limit", "step "):
        assert text in watching.text()
    listed = launch(elsewhere, "runs", str(tmp_path))
    assert listed.finish() == 0
    assert "running" in listed.text() and "/100000" in listed.text()
    begun.process.kill()
    begun.finish()
    again = launch(elsewhere, "top", str(run))
    assert again.finish() == 2
    assert f"error: {run}: no run goes on there. `launch runs` lists what there is." in again.text()


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_on_a_cluster_is_watched_without_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
    with ray_head(monkeypatch) as address:
        run = tmp_path / "here" / "the-run"
        flags = ["--dim", "16", "--heads", "2", "--depth", "2", "--epochs", "100000", "--stages", "2"]
        begun = launch(tmp_path / "here", "cff-vit", *flags, "--address", address, "--run-dir", str(run))
        begun.wait_for("epoch 3/")

        def top(*arguments: str) -> tuple[int, str]:
            watching = launch(tmp_path / "elsewhere", "top", *arguments, "--address", address)
            return watching.finish(), watching.text()

        status, text = top("the-run")
        assert status == 0, text
        for part in ("cff-vit on digits", "utilisation", " limit", "step "):
            assert part in text
        status, text = top("another")
        assert status == 2
        assert "no run another goes on there. Those that do: " in text and f":{run}." in text
        begun.process.terminate()
        begun.finish()
        status, text = top()
        assert status == 2 and f"The cluster at {address}: no run goes on there." in text


def test_runs_are_listed_with_how_good_and_how_fast_they_are(runs: Path, capsys: Any) -> None:
    assert main(["runs", str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for folder in sorted(runs.iterdir()):
        summary = json.loads((folder / "summary.json").read_text())
        line = next(line for line in lines if line.startswith(folder.name))
        assert "finished" in line and f"{summary['test_accuracy']:.2%}" in line
        assert f"{summary['speed']['images_per_second']:,.0f}" in line


def test_seeds_are_one_column_and_their_difference_is_judged(runs: Path, capsys: Any) -> None:
    assert main(["compare", *(str(folder) for folder in sorted(runs.iterdir()))]) == 0
    printed = capsys.readouterr().out
    rows = {line.split("│")[0].strip(): [c.strip() for c in line.split("│")[1:]] for line in printed.splitlines()}
    assert rows["train.lr"] == ["0.004", "1e-05"]
    assert "a0 and 2 other seeds" in printed and "train.seed" not in rows and "run_dir" not in rows
    accuracies = [
        [json.loads((runs / f"{name}{seed}" / "summary.json").read_text())["test_accuracy"] for seed in range(3)]
        for name in "ab"
    ]
    for cell, values in zip(rows["test accuracy"], accuracies, strict=True):
        mean = sum(values) / 3
        deviation = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
        assert cell == f"{mean:.2%} ± {deviation:.2%}"
    assert "Welch's t-test, 3 and 3 seeds" in printed


def test_what_is_no_run_is_said(runs: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["compare", str(runs / "a0")]) == 2
    assert "give two run folders or more" in capsys.readouterr().err
    assert main(["runs", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    with FileLock(runs / "a1" / ".lock"):
        assert main(["top", str(runs / "a1")]) == 0
    assert "starting; no batch has come through yet" in capsys.readouterr().out
