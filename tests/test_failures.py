"""Nothing hangs, and what was learned is kept: interrupts, killed workers, losses that are no number, full disks."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launch.cli import main
from pipeline import export, local, reference
from pipeline.errors import NonFiniteLossError, ResourcesError
from pipeline.settings import Settings
from tests.conftest import make_run
from tests.support_cli import launch

_LONG = ["cff-vit", "--dim", "32", "--batch-size", "64", "--epochs", "500", "--stages", "3", "--device", "cpu"]


def test_ctrl_c_stops_within_five_seconds_and_keeps_what_was_learned(tmp_path: Path) -> None:
    launched = launch(tmp_path, *_LONG, "--run-dir", str(tmp_path / "run"))
    launched.wait_for("epoch 2/500")
    begun = time.monotonic()
    launched.interrupt()
    assert launched.finish(30) == 130
    assert time.monotonic() - begun < 5
    launched.assert_nothing_left(seconds=1)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["best_epoch"] >= 1
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert {name.split(".")[1] for name in weights} == {"0", "1", "2", "3"}
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert any("exp_avg" in name for name in load_file(tmp_path / "run" / "last.safetensors"))


def test_ctrl_c_while_starting_leaves_nothing(tmp_path: Path) -> None:
    launched = launch(tmp_path, *_LONG, "--run-dir", str(tmp_path / "run"))
    launched.wait_for("3 stages on cpu")
    launched.interrupt()
    assert launched.finish(30) == 130
    launched.assert_nothing_left(seconds=1)


@pytest.mark.parametrize(("victim", "name"), [("StageWorker", "stage"), ("FeederWorker", "feeder")])
def test_a_killed_worker_ends_the_run_naming_it(tmp_path: Path, victim: str, name: str) -> None:
    launched = launch(tmp_path, *_LONG, "--run-dir", str(tmp_path / "run"))
    launched.wait_for("epoch 1/500")
    workers = [pid for pid, command in launched.descendants().items() if f"ray::{victim}" in command]
    assert workers, launched.descendants()
    begun = time.monotonic()
    os.kill(workers[-1], signal.SIGKILL)
    assert launched.finish(30) == 1
    assert time.monotonic() - begun < 10
    said = next(line for line in launched.text().splitlines() if line.startswith("error: "))
    assert name in said
    assert "died" in said
    launched.assert_nothing_left()


@pytest.mark.parametrize("executor", ["serial", "threads", "ray"])
def test_a_loss_that_is_no_number_stops_with_the_good_weights(
    tmp_path: Path, executor: str, cluster: None, capsys: Any
) -> None:
    arguments = ["cff-vit", "--dim", "16", "--heads", "2", "--batch-size", "64", "--lr", "1e18", "--device", "cpu"]
    arguments += ["--executor", executor, *(["--stages", "2"] if executor != "serial" else [])]
    assert main([*arguments, "--run-dir", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "stage " in said
    assert "layer " in said
    assert "epoch 1, step " in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_the_first_bad_step_is_the_same_for_every_executor(small_settings: Settings) -> None:
    settings = replace(small_settings, train=replace(small_settings.train, lr=1e18))
    with pytest.raises(NonFiniteLossError) as serial:
        reference.train(*make_run(settings))
    with pytest.raises(NonFiniteLossError) as threads:
        local.train(*make_run(replace(settings, pipeline=replace(settings.pipeline, executor="threads")), stages=1))
    assert str(serial.value) == str(threads.value)


def test_a_disk_that_fills_up_loses_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run = tmp_path / "run"

    def full(file: Path, *rest: Any) -> None:
        if file.is_relative_to(run):
            raise OSError(28, "No space left on device")
        export.save(file, *rest)

    monkeypatch.setattr("launch.runfolder.save", full)
    monkeypatch.setattr("tempfile.mkdtemp", lambda prefix: str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    arguments = ["cff-vit", "--executor", "serial", "--dim", "16", "--heads", "2"]
    arguments += ["--epochs", "1", "--head-epochs", "1"]
    assert main([*arguments, "--run-dir", str(run)]) == 0
    captured = capsys.readouterr()
    assert "No space left" in captured.err
    assert str(tmp_path / "elsewhere") in captured.out
    assert load_file(tmp_path / "elsewhere" / "model.safetensors")


def test_stages_that_find_no_room_say_what_is_there(small_settings: Settings, cluster: None) -> None:
    from workers import crew

    pipe = replace(small_settings.pipeline, executor="ray", resource_timeout=1.0, threads=6)
    spec, _ = make_run(replace(small_settings, pipeline=pipe), stages=2)
    with pytest.raises(ResourcesError, match=r"2 stages need 6 CPU each; after 1 s the cluster has 8 CPU"):
        crew.train(spec)
