"""Runs from Python: `train` does what `launch PRESET` does, from any thread, and mistakes are one clear message."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from launch import Run, resume, train
from pipeline import load
from pipeline.errors import UserError
from pipeline.kind import Kind
from tests.support_documents import ROOT

_SMALL: dict[str, Any] = {"dim": 16, "heads": 2, "depth": 2, "epochs": 2, "readout_epochs": 1, "batch_size": 64}
EXAMPLES = [file for file in sorted((ROOT / "examples").glob("*.py")) if "python examples/" in file.read_text()]


def test_a_run_gives_history_network_and_folder(tmp_path: Path, capsys: Any) -> None:
    run = train("cff-vit", executor="threads", stages=2, run_dir=tmp_path / "run", **_SMALL)
    assert (run.status, run.folder) == ("finished", tmp_path / "run")
    assert run.history.epochs(Kind.VALIDATE) == [0, 1]
    assert run.summary["command"].startswith("train('cff-vit', executor='threads', stages=2")
    images = torch.rand(3, *run.network.shape)
    assert torch.equal(run.network(images), load(run.folder / "model.safetensors")(images))
    assert f"{run.summary['test_accuracy']:.2%}" in repr(run)
    assert "test accuracy" in capsys.readouterr().out


def test_a_run_goes_on_for_more_epochs(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": "digits", "executor": "serial", "dim": 16, "heads": 2, "max_steps": 40}
    first = train("cff-vit", epochs=1, quiet=True, run_dir=tmp_path / "run", **settings)
    more = resume(first.folder, quiet=True, epochs=2)
    whole = train("cff-vit", epochs=2, quiet=True, run_dir=tmp_path / "whole", **settings)
    assert more.status == "finished" and more.folder == first.folder
    assert more.history.epochs(Kind.TRAIN) == [0, 1]
    for name in ("model.safetensors", "last.safetensors", "steps.safetensors"):
        assert (more.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    with pytest.raises(UserError, match=r"unknown change of a run that goes on 'epoch'\. Did you mean 'epochs'"):
        resume(first.folder, epoch=3)


def test_it_runs_outside_the_main_thread_and_an_event_stops_it(tmp_path: Path) -> None:
    stop, got = threading.Event(), list[Run]()

    def work() -> None:
        settings = _SMALL | {"epochs": 100_000}
        got.append(train("cff-vit", executor="serial", run_dir=tmp_path / "run", stop=stop, quiet=True, **settings))

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(600):
        thread.join(0.2)
        metrics = tmp_path / "run" / "metrics.jsonl"
        if metrics.exists() and metrics.stat().st_size:
            break
    stop.set()
    thread.join(60)
    assert [run.status for run in got] == ["interrupted"]
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batchsize": 3}, "Did you mean 'batch_size'?"),
        ({"epochs": "many"}, "train.epochs should be a valid integer"),
        ({"depth": 0}, "depth"),
    ],
)
def test_a_mistake_is_one_message(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        train("cff-vit", executor="serial", **settings)
    with pytest.raises(UserError, match="Did you mean 'cff-vit'"):
        train("cff-vitt")


def test_settings_are_those_of_the_data_set_that_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="launch prepare mnist"):
        train("cfl-fc", data="mnist", data_dir=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs(example: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "layer" in done.stdout
