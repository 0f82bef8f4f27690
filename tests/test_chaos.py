"""`launch chaos`: what it does to a run is real, and it says when the bits are others."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from launch.chaos import command
from launch.chaos.faults import FAULTS
from launch.cli import main
from tests.support_cli import launch

pytestmark = [pytest.mark.timeout(1200), pytest.mark.slow]  # a busy machine takes minutes to start a run

_RUN = ["--", "--dim", "16", "--heads", "2", "--depth", "2", "--epochs", "60", "--readout-epochs", "1", "--stages", "2"]


@pytest.mark.exhaustive
def test_a_run_survives_what_is_done_to_it(tmp_path: Path) -> None:
    """A worker dies and is started anew alone; a process that writes checkpoints dies, and nobody minds."""
    kinds = ["--only", "stage killed", "writer killed", "--pause", "0.5", "--seed", "3"]
    launched = launch(tmp_path, "chaos", "cff-vit", "--faults", "2", *kinds, "--out", str(tmp_path / "chaos"), *_RUN)
    assert launched.finish(1100) == 0, launched.text()
    launched.assert_nothing_left()
    told = json.loads((tmp_path / "chaos" / "chaos.json").read_text())
    assert told["equal"]
    killed, wrote = sorted(told["faults"], key=lambda fault: fault["fault"])
    assert (killed["fault"], wrote["fault"]) == ("stage killed", "writer killed")
    assert killed["recovered"] > killed["noticed"] > 0
    assert killed["how"] in ("stage 1 (layer 1)", "stage 2 (layer 2)")
    assert (wrote["noticed"], wrote["recovered"], wrote["how"]) == (None, None, "went on")
    assert "weights, optimizers, losses and predictions: the bits of the undisturbed run" in launched.text()


def test_its_runs_end_with_it(tmp_path: Path) -> None:
    """Symptom: stopped by SIGTERM, it left the undisturbed run behind."""
    launched = launch(tmp_path, "chaos", "cff-vit", "--out", str(tmp_path / "chaos"), *_RUN, "--epochs", "5000")
    end = time.monotonic() + 120
    while not (victims := running(tmp_path / "chaos" / "undisturbed")):
        assert time.monotonic() < end and launched.process.poll() is None, launched.text()
        time.sleep(0.1)
    launched.stop(signal.SIGTERM)
    assert launched.finish() == 130
    assert not running(tmp_path / "chaos" / "undisturbed"), victims


def running(run: Path) -> list[int]:
    """Processes that were told of this run folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it ended while we looked
            continue
        if str(run).encode() in arguments:
            found.append(int(entry.name))
    return found


def test_other_bits_are_said_and_end_it_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def disturbed(*_: Any) -> Any:
        (tmp_path / "chaos" / "disturbed").mkdir()
        for name in command._FILES:
            content = (tmp_path / "chaos" / "undisturbed" / name).read_bytes()
            (tmp_path / "chaos" / "disturbed" / name).write_bytes(
                content[:-1] if name == "last.safetensors" else content
            )
        return type("", (), {"run": staticmethod(list)})

    monkeypatch.setattr(command, "Disturbed", disturbed)
    arguments = ["chaos", "cff-vit", "--out", str(tmp_path / "chaos"), *_RUN, "--max-steps", "1"]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert "other bits than the undisturbed run's" in said.out
    assert "last.safetensors of the disturbed run are other" in said.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "earthquake"], f"--only earthquake: there are {', '.join(FAULTS)}."),
        (["--faults", "0"], "--faults 0: must be at least 1."),
        (["nonsense"], "unknown preset 'nonsense'"),
        (["--", "--run-dir", "x"], "--run-dir: is `launch chaos`'s own matter. Leave it out."),
    ],
)
def test_mistakes_are_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chaos", *arguments]) == 2
    assert said in capsys.readouterr().err
