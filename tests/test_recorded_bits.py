"""A run's numbers stay what they were: one short serial run of every group of presets against its recorded digest.

`test_every_preset.py` holds every preset's first step over Ray to the same record.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from tests.support_bits import assert_recorded
from tests.support_data import prepare_made_up

COMMANDS = [
    "cff-vit",
    "cff-vit --precision bf16 --transfer-dtype bf16",
    "cff-vit --readout online --views 1 --pooling token",
    "cff-mlp-mnist",
    "cfl-fc --data mnist",
    "cfl-fc-d --data mnist --contrast printed --similarity cosine",
    "cfl-conv256",
    "cfl-conv512-d-no-fl",
    "cfl-vit --depth 2",
    "dcl-fc --data mnist",
    "dcl-fc --data mnist --embedding-mode shared-sum --norm after",
    "dcl-conv256 --embedding-mode per-layer",
    "dcl-vgg8b --scale 0.25",
    "dcl-resnet32",
    "dcl-vit --depth 2",
    "dcl-mixer --depth 2",
    "cfl-conv256 --baseline bp",
    "cfl-conv256 --baseline fa",
    "cfl-conv256 --baseline dfa",
    "cfl-conv256 --baseline drtp --lr 1e-4",
]


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made-up")
    for name in ("cifar10", "mnist"):
        prepare_made_up(folder, name, num_train=300, num_test=20)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_serial_run_learns_the_recorded_numbers(
    command: str, made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCALPIPE_DATA", str(made_up))
    monkeypatch.setenv("LOCALPIPE_MAX_STEPS", "3")
    assert main([*command.split(), "--batch-size", "64", "--executor", "serial", "--run-dir", "run"]) == 0
    assert_recorded(f"{command} --executor serial", tmp_path / "run")
