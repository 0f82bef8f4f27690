"""A run folder or a network's file that was made to harm is one sentence, before memory is taken or a net is built."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from launch.cli import main
from pipeline import export as export_module
from pipeline import load
from pipeline.errors import UserError
from tests.test_damaged_runs import change_card, change_config, put, refusal, run, whole

__all__ = ["run", "whole"]  # fixtures

_DEEP = '{"a":' * 100_000


def every_command(run: Path) -> list[list[str]]:
    """What looks at a network: each must refuse it."""
    image, new = run.parent / "x.png", run.parent / "new.safetensors"
    image.write_bytes(b"")
    weights = str(run / "model.safetensors")
    return [
        ["eval", str(run)],
        ["analyse", str(run)],
        ["predict", str(run), str(image)],
        ["predict", weights, str(image)],
        ["export", str(run), str(new)],
    ]


def refused_by_every_command(run: Path, capsys: Any, *parts: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for arguments in every_command(run):
        said = refusal(capsys, *arguments)
        assert str(run / "model.safetensors") in said
        assert all(part in said for part in parts), said
        assert len(said) < 600
    assert not (run.parent / "new.safetensors").exists(), "nothing is copied that cannot be loaded"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 256 << 10, f"{grown} KiB were taken"


def change_text(run: Path, text: str) -> None:
    """Another card, whatever it is."""
    file = run / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    save_file(weights, file, metadata={"localpipe": text})


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        ("net.depth", 10**9, "a net has at most 4,096 layers"),
        ("net.depth", 4000, "something of its 4,000 layers is missing"),
        ("net.depth", 0, "must be at least 1"),
        ("net.dim", 10**9, "at most 65,536"),
        ("net.dim", 10**30, "is above 2,147,483,647"),
        ("net.dim", 65536, "65536"),
        ("net.heads", 0, "must be at least 1"),
        ("net.patch", 0, "does not divide"),
        ("net.patch", -1, "does not divide"),
        ("net.pooling", "token", "is missing"),
        ("method.temperature", 0, "must be a number above 0"),
        ("shape", [1, 0, 0], "its card says 0 in it for shape: 1 to 16,384"),
        ("shape", [1, 10**9, 10**9], "its card says 1000000000 in it for shape"),
        ("shape", [0, 8, 8], "its card says 0"),
        ("shape", [3, 8, 8], "3 channels"),
        ("classes", [], "its card says 0 of them for classes"),
        ("std", [0.0], "std above 0"),
        ("std", [-1.0], "std above 0"),
        ("threads", 0, "its card says 0 in it for threads"),
        ("threads", 2**31, "its card says 2147483648 in it for threads"),
    ],
)
def test_a_card_that_asks_for_too_much_or_for_nothing_is_refused(
    run: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, where: str, value: Any, says: str
) -> None:
    """Symptom: minutes of building layers, a MemoryError, ZeroDivisionErrors; and `launch export` copied it with 0."""
    change_card(run, lambda card: put(card, where, value))
    monkeypatch.setattr(export_module, "Network", lambda *_, **__: pytest.fail("a network was built"))
    refused_by_every_command(run, capsys, says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\x00\x01\x02", "cannot be read as JSON"),
        (_DEEP, "deep"),
        ('{"net": ' + "[" * 60 + "]" * 60 + "}", "deep"),
        ('{"threads": ' + "9" * 5000 + "}", "5,000 digits"),
        ('{"mean": [NaN]}', "NaN"),
        ('{"mean": [1e999]}', "in its card"),
    ],
)
def test_a_card_that_is_no_table_of_values_is_refused(run: Path, capsys: Any, text: str, says: str) -> None:
    change_text(run, text)
    refused_by_every_command(run, capsys, says)


def test_a_card_with_infinity_spelt_as_a_number_is_refused(run: Path, capsys: Any) -> None:
    with safe_open(run / "model.safetensors", framework="pt") as opened:
        card = json.loads(opened.metadata()["localpipe"])
    for name in ("mean", "std"):
        change_text(run, json.dumps(card | {name: "here"}).replace('"here"', "[1e999]"))
        refused_by_every_command(run, capsys, "std above 0")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda weights: weights.update({"layers.0.net.norm1.weight": torch.zeros(17)}), "is 17 and should be 16"),
        (lambda weights: weights.update({"layers.9.net.norm1.weight": torch.zeros(16)}), "belongs to none of"),
        (lambda weights: weights.update({"layers.99999999999999999999.net.x": torch.zeros(1)}), "belongs to none of"),
        (lambda weights: weights.update({"../x": torch.zeros(1)}), "belongs to none of"),
        (lambda weights: weights.pop("layers.1.net.norm1.weight"), "layers.1.net.norm1.weight is missing"),
    ],
)
def test_tensors_of_other_names_or_sizes_are_refused(run: Path, capsys: Any, change: Any, says: str) -> None:
    file = run / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    change(weights)
    save_file(weights, file, metadata=metadata)
    refused_by_every_command(run, capsys, says)


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        ("settings.net.depth", 10**9, "a net has at most 4,096 layers"),
        ("settings.net.dim", 10**30, "config.json: --dim"),
        ("settings.net.dim", 65536, "not of one run"),
        ("settings.pipeline.threads", 2**31, "threads"),
        ("settings.train.seed", 10**30, "config.json: --seed"),
        ("settings.data.memory_budget", 1e300, "memory-budget"),
    ],
)
def test_a_configuration_that_asks_for_too_much_is_refused(
    run: Path, capsys: Any, where: str, value: Any, says: str
) -> None:
    change_config(run, where, value)
    assert says in refusal(capsys, "eval", str(run))
    assert says in refusal(capsys, "analyse", str(run))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (_DEEP, "deep"),
        ('{"settings": {"train": {"epochs": ' + "9" * 5000 + "}}}", "5,000 digits"),
        ('{"settings": {"train": {"lr": NaN}}}', "NaN"),
        ('{"settings": {"train": {"lr": 1e999}}}', ""),
    ],
)
def test_a_configuration_that_is_made_to_harm_is_refused(run: Path, capsys: Any, text: str, says: str) -> None:
    file = run / "config.json"
    file.write_text(text)
    for arguments in (["eval", str(run)], ["cff-vit", "--dry-run", "--config", str(file)]):
        said = refusal(capsys, *arguments)
        assert says in said
        assert len(said) < 400


def test_a_configuration_that_one_would_wait_for_is_refused(run: Path, capsys: Any) -> None:
    (run / "config.json").unlink()
    os.mkfifo(run / "config.json")
    for arguments in (["eval", str(run)], ["cff-vit", "--dry-run", "--config", str(run / "config.json")]):
        assert "no regular file" in refusal(capsys, *arguments)


def test_embeddings_that_are_missing_or_too_short_are_refused(tmp_path: Path, capsys: Any) -> None:
    """Symptom: a network that loads, and fails at its first image."""
    folder = tmp_path / "it"
    small = ["--width", "48", "--depth", "2", "--epochs", "1", "--data", "digits", "--batch-size", "512"]
    here = ["--executor", "serial", "--device", "cpu", "--run-dir", str(folder)]
    assert main(["cfl-fc", *small, *here]) == 0
    file = folder / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    (shared,) = (name for name in weights if not name.startswith("layer"))
    save_file({**weights, shared: weights[shared][:, :1].contiguous()}, file, metadata=metadata)
    refused_by_every_command(folder, capsys, "of length 1")
    del weights[shared]
    save_file(weights, file, metadata=metadata)
    refused_by_every_command(folder, capsys, "is missing")
    with pytest.raises(UserError, match="is missing"):
        load(file)
