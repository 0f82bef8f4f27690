"""A run's folder is its own, and a run outlives whoever reads what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launch.output.run_folder import RunFolder
from pipeline.config.settings import Settings
from pipeline.errors import UserError
from tests.conftest import make_run
from tests.support_documents import ROOT


def folder_of(settings: Settings, path: Path) -> RunFolder:
    spec, _ = make_run(settings)
    return RunFolder(spec, path, warn=pytest.fail)


def test_runs_of_the_same_second_do_not_share_a_folder(small_settings: Settings, tmp_path: Path) -> None:
    """Symptom: both found the name free, and each wrote over what the other had written."""
    path = tmp_path / "runs" / "cff-vit-20260101-000000"
    folders = [folder_of(small_settings, path) for _ in range(3)]
    assert len({folder.path for folder in folders}) == 3
    assert all((folder.path / "config.json").is_file() for folder in folders)
    folders[1].discard()
    assert folders[0].path.exists() and not folders[1].path.exists()


def test_a_folder_that_was_asked_for_is_one_run_s(small_settings: Settings, tmp_path: Path) -> None:
    settings = replace(small_settings, run_dir=str(tmp_path / "mine"))
    first = folder_of(settings, tmp_path / "mine")
    before = (first.path / "config.json").read_text()
    with pytest.raises(UserError, match="another run has begun to write there"):
        folder_of(settings, tmp_path / "mine")
    assert (first.path / "config.json").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize("where", ["head", "nobody"])
def test_a_run_goes_on_when_nobody_reads_what_it_prints(tmp_path: Path, where: str) -> None:
    """Symptom: `launch … | head` ended the training without a word."""
    command = [sys.executable, "-m", "launch", "cff-vit", "--executor", "serial", "--dim", "16", "--heads", "2"]
    command += ["--epochs", "2", "--readout-epochs", "1", "--log-every", "0.1", "--run-dir", str(tmp_path / "run")]
    training = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert training.stdout is not None and training.stderr is not None
    if where == "head":
        training.stdout.readline()
    training.stdout.close()
    said = training.stderr.read()
    assert training.wait(120) == 0, said
    assert "nobody reads the standard output any more" in said
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"
