"""A run folder or an exported file that was changed, cut short or made by another version: one sentence says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from launch.cli import main
from pipeline import load
from pipeline.errors import UserError

Values = dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run's folder."""
    folder = tmp_path_factory.mktemp("runs") / "it"
    sizes = ["--dim", "16", "--heads", "2", "--depth", "2", "--batch-size", "512"]
    once = ["--epochs", "1", "--readout-epochs", "1", "--executor", "serial", "--device", "cpu"]
    assert main(["cff-vit", *sizes, *once, "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "it"))


def put(values: Values, where: str, value: Any) -> None:
    """Sets one value; ``where`` is its place, such as net.dim."""
    *tables, last = where.split(".")
    for table in tables:
        values = values[table]
    values[last] = value


def change_config(run: Path, where: str, value: Any) -> None:
    values = json.loads((run / "config.json").read_text())
    put(values, where, value)
    (run / "config.json").write_text(json.dumps(values))


def change_card(run: Path, change: Callable[[Values], Any]) -> None:
    file = run / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        card = json.loads(opened.metadata()["localpipe"])
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    change(card)
    save_file(weights, file, metadata={"localpipe": json.dumps(card)})


def refusal(capsys: Any, *arguments: str) -> str:
    """What the command says, on one line, as it refuses."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    said: str = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said.strip().splitlines()) == 1, said
    assert "pydantic" not in said
    return said


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        ("method.kind", "cfx", ["method: no method is called 'cfx'", "cff, cfl, dcl"]),
        ("net.kind", "vitt", ["net: no net is called 'vitt'", "mixer, mlp"]),
        ("net.dim", "many", ["net.dim should be a valid integer, not 'many'"]),
        ("net.patch", "big", ["net.patch should be a valid integer or 'auto', not 'big'"]),
        ("net.dropout", 0.1, ["fields that this version does not know: net.dropout"]),
        ("colour", "red", ["fields that this version does not know: colour"]),
        ("classes", 5, ["classes should be a list, not 5"]),
        ("shape", [1, 8], ["shape.2 is missing"]),
        ("mean", [0.1, 0.2], ["2 numbers for mean, 1 for std and images of 1 channels"]),
        ("net.heads", 7, ["--dim 16 is not divisible by --heads 7"]),
        ("net.patch", "auto", ["leaves settings of the net open"]),
        ("net.dim", 32, ["ViT[32 2 2]", "is 16 and should be 32"]),
        ("net.depth", 1, ["belongs to none of its 1 layers"]),
        ("net.depth", 3, ["ViT[16 2 3]", "is missing"]),
        ("classes", ["a", "b"], ["for 2 classes", "is 10 and should be 2"]),
        ("format", 2, ["format 2, this version reads 1"]),
    ],
)
def test_a_card_that_does_not_fit_is_one_sentence_for_every_command(
    run: Path, tmp_path: Path, capsys: Any, where: str, value: Any, says: list[str]
) -> None:
    change_card(run, lambda card: put(card, where, value))
    Path(tmp_path / "x.png").write_bytes(b"")
    for arguments in (["eval", str(run)], ["predict", str(run), str(tmp_path / "x.png")]):
        said = refusal(capsys, *arguments)
        assert str(run / "model.safetensors") in said
        assert all(part in said for part in says), said
        assert "again" in said, "it says what to do"


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        ("settings.method.kind", "cfx", ["method: no method is called 'cfx'", "cff, cfl, dcl"]),
        ("settings.net.kind", "vitt", ["net: no net is called 'vitt'", "mixer, mlp"]),
        ("settings.train.epochs", "many", ["train.epochs should be a valid integer, not 'many'"]),
        ("settings.method.temperature", "hot", ["method.temperature should be a valid number, not 'hot'"]),
        ("settings.train.nesterov", 0.9, ["unknown settings train.nesterov"]),
        ("settings.train", 3, ["train should be a table of settings, not 3"]),
        ("settings", [3], ["settings are a table, not [3]"]),
        ("data", "x", ["data.folder, a text, is missing"]),
        ("data.content_hash", None, ["data.content_hash, a text, is missing"]),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_sentence(
    run: Path, capsys: Any, where: str, value: Any, says: list[str]
) -> None:
    change_config(run, where, value)
    said = refusal(capsys, "eval", str(run))
    assert str(run / "config.json") in said
    assert all(part in said for part in says), said


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\x00"])
def test_a_configuration_that_is_none_is_one_sentence(run: Path, capsys: Any, content: bytes) -> None:
    (run / "config.json").write_bytes(content)
    said = refusal(capsys, "eval", str(run))
    assert str(run) in said
    assert "config.json" in said


@pytest.mark.parametrize("change", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\0\1" * 99])
def test_damaged_weights_are_one_sentence_for_every_command(
    run: Path, tmp_path: Path, capsys: Any, change: Callable[[bytes], bytes]
) -> None:
    file = run / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    (tmp_path / "x.png").write_bytes(b"")
    for arguments in (
        ["eval", str(run)],
        ["predict", str(run), str(tmp_path / "x.png")],
        ["export", str(run), str(tmp_path / "new.safetensors")],
    ):
        said = refusal(capsys, *arguments)
        assert str(file) in said
        assert "cut short, damaged" in said


def test_weights_without_a_card_are_one_sentence(run: Path) -> None:
    file = run / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        save_file({name: opened.get_tensor(name) for name in opened.keys()}, run / "bare.safetensors")  # noqa: SIM118
    with pytest.raises(UserError, match=r"bare\.safetensors: holds weights, and no card"):
        load(run / "bare.safetensors")


def test_a_configuration_and_weights_of_two_runs_are_told_apart(run: Path, capsys: Any) -> None:
    change_config(run, "settings.net.pooling", "token")
    said = refusal(capsys, "eval", str(run))
    assert "config.json and model.safetensors are not of one run: net is" in said
