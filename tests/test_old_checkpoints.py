"""Runs that earlier versions left unfinished, as they lay on the disk, are gone on with.

A fixture is a run of ``dcl-fc --data digits --depth 2 --width 8 --groups 2 --embedding-width 4 --epochs 3
--milestones 2 --batch-size 32 --executor serial --checkpoint-every 50`` that was killed after its first checkpoint, in
epoch 2. A new format gets a new folder; those before it stay.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from launch.cli import main
from pipeline.checkpoints.folder import FORMAT
from pipeline.config import build
from pipeline.config.settings import DataSettings, Settings

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("run-format-*"))


def test_there_is_one_of_this_version_s_format() -> None:
    assert [int(fixture.name.rpartition("-")[2]) for fixture in FIXTURES] == list(range(1, FORMAT + 1))


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture.name)
def test_it_goes_on_to_the_same_bits_in_any_executor(fixture: Path, tmp_path: Path) -> None:
    build.open_data(Settings(data=DataSettings(data="digits")))  # prepared where the test's data are
    results = []
    for name, how in (("serial", []), ("threads", ["--stages", "2", "--feeders", "2"])):
        run = tmp_path / name
        shutil.copytree(fixture, run)
        assert main(["resume", str(run), "--executor", name, *how]) == 0
        told = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [(one["kind"], one["epoch"]) for one in told if one.get("layer") == 1] == [
            *((kind, epoch) for epoch in (1, 2, 3) for kind in ("train", "validate")),
            ("test", 1),
        ]
        assert (run / "metrics.jsonl").read_text().startswith((fixture / "metrics.jsonl").read_text())
        results.append((run / "model.safetensors").read_bytes())
    assert results[0] == results[1]
