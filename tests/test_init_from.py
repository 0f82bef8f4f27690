"""A run that begins with another run's weights: FFCL's three stages, blocks that a baseline trained, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from launch.cli import main
from tests.test_ff_runs import assert_refused

DIGITS = [
    *("--data", "digits", "--train-fraction", "0.3", "--batch-size", "64", "--epochs", "1", "--readout-epochs", "1"),
    *("--width", "24"),
]
_LOCAL = ["ffcl-mlp-mnist", *DIGITS, "--executor", "threads", "--stages", "3"]
_UNMOVED = ("--lr", "1e-30")  # so low that AdamW leaves every weight as it is


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FFCL's first stage, in three stages of a pipeline."""
    folder = tmp_path_factory.mktemp("local") / "run"
    assert main([*_LOCAL, "--run-dir", str(folder)]) == 0
    return folder


def weights(run: Path) -> dict[str, Tensor]:
    """Of the net's linear maps, by layer and name, however the run had its layers."""
    found = load_file(run / "model.safetensors")
    named = {name.replace("layers.0.net.layers.", "layers."): value for name, value in found.items() if ".net." in name}
    return {name.replace(".net.", "."): value for name, value in named.items()}


def assert_begun_with(run: Path, other: Path) -> None:
    """As the learning rate is next to nothing, a run has the weights that it began with."""
    mine, theirs = weights(run), weights(other)
    assert mine.keys() == theirs.keys() and len(mine) == 6
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_each_of_ffcls_stages_begins_with_the_weights_of_the_one_before(local: Path, tmp_path: Path) -> None:
    whole, last = tmp_path / "global", tmp_path / "bp"
    one_stage = ["ffcl-mlp-mnist", *DIGITS, *_UNMOVED, "--executor", "serial"]
    assert main([*one_stage, "--scope", "global", "--init-from", str(local), "--run-dir", str(whole)]) == 0
    assert_begun_with(whole, local)
    assert main([*one_stage, "--baseline", "bp", "--init-from", str(whole), "--run-dir", str(last)]) == 0
    assert_begun_with(last, local)
    again = tmp_path / "again"  # and back: a whole net's weights in the stages of a pipeline
    assert main([*_LOCAL, *_UNMOVED, "--init-from", str(last), "--run-dir", str(again)]) == 0
    assert_begun_with(again, local)


def test_the_serial_bits_are_those_of_the_pipeline(local: Path, tmp_path: Path) -> None:
    runs = {"serial": ["--executor", "serial"], "threads": ["--executor", "threads", "--stages", "3"]}
    for name, executor in runs.items():
        arguments = ["ffcl-mlp-mnist", *DIGITS, "--seed", "1", "--init-from", str(local / "model.safetensors")]
        assert main([*arguments, *executor, "--run-dir", str(tmp_path / name)]) == 0
    first, second = (load_file(tmp_path / name / "last.safetensors") for name in runs)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    moved, begun = weights(tmp_path / "serial"), weights(local)
    assert not any(torch.equal(value, begun[name]) for name, value in moved.items())


@pytest.mark.exhaustive
def test_over_ray_it_begins_with_the_same_weights(local: Path, cluster: None, tmp_path: Path) -> None:
    arguments = ["ffcl-mlp-mnist", *DIGITS, *_UNMOVED, "--stages", "3", "--init-from", str(local)]
    assert main([*arguments, "--run-dir", str(tmp_path / "run")]) == 0
    assert_begun_with(tmp_path / "run", local)


def test_it_is_looked_at_and_gone_on_with_when_the_other_run_is_gone(local: Path, tmp_path: Path, capsys: Any) -> None:
    other, run = tmp_path / "other.safetensors", tmp_path / "run"
    other.write_bytes((local / "model.safetensors").read_bytes())
    arguments = ["ffcl-mlp-mnist", *DIGITS, "--executor", "serial", "--checkpoint-every", "2"]
    assert main([*arguments, "--init-from", str(other), "--run-dir", str(run)]) == 0
    assert f"its layers begin with the weights of {other}" in capsys.readouterr().out
    assert json.loads((run / "config.json").read_text())["settings"]["train"]["init_from"] == str(other)
    other.unlink()
    assert main(["eval", str(run)]) == 0
    assert main(["resume", str(run), "--epochs", "2"]) == 0


def test_blocks_of_cafo_can_be_those_of_direct_feedback_alignment(tmp_path: Path) -> None:
    data = [*("--data", "digits", "--train-fraction", "0.3", "--batch-size", "64", "--channels", "4", "6")]
    dfa, run = tmp_path / "dfa", tmp_path / "run"
    trained = ["cafo-mnist", *data, "--baseline", "dfa", "--lr", "1e-3"]
    assert main([*trained, "--run-dir", str(dfa)]) == 0
    assert main(["cafo-mnist", *data, "--executor", "threads", "--init-from", str(dfa), "--run-dir", str(run)]) == 0
    blocks, theirs = weights(run), weights(dfa)
    convolutions = [name for name in blocks if "conv" in name]
    assert len(convolutions) == 4
    assert all(torch.equal(blocks[name], theirs[name]) for name in convolutions)


MISTAKES = {
    "no such run": ([*_LOCAL, "--init-from", "nowhere"], ["--init-from nowhere", "no such run"]),
    "another net": ([*_LOCAL, "--width", "16", "--init-from", "RUN"], ["MLP[24 3]", "MLP[16 3]", "same settings"]),
    "other images": ([*_LOCAL, "--data", "OTHERS", "--init-from", "RUN"], ["8×8 pixels", "12×12 pixels"]),
    "layers of another kind": (
        ["iffcl-mlp-mnist", *DIGITS, "--depth", "3", "--executor", "serial", "--init-from", "RUN"],
        ["layers trained by ffcl", "iffcl needs in layer 1"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_and_leaves_nothing(
    mistake: str, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    others = tmp_path / "others"
    for name in ("a", "b"):
        (others / name).mkdir(parents=True)
        for number in range(200):
            Image.new("L", (12, 12), number).save(others / name / f"{number}.png")
    arguments, said = MISTAKES[mistake]
    places = {"RUN": str(local), "OTHERS": str(others)}
    (tmp_path / "here").mkdir()
    given = [places.get(argument, argument) for argument in arguments]
    assert_refused(given, said, tmp_path / "here", monkeypatch, capsys)


def test_a_dry_run_says_the_same(local: Path, capsys: Any) -> None:
    assert main([*_LOCAL, "--width", "16", "--init-from", str(local), "--dry-run"]) == 2
    assert "MLP[24 3]" in capsys.readouterr().err
    assert main([*_LOCAL, "--init-from", str(local), "--dry-run"]) == 0
