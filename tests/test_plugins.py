"""Plug-ins: a file from outside is listed, launched, pipelined, evaluated and run again like what is inside."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launch.cli import main
from launch.presets import PRESETS
from pipeline import plugins
from pipeline.data.registry import DATASETS
from pipeline.methods import METHODS
from tests.support_documents import ROOT

EXAMPLE = ROOT / "examples" / "plugin_centres.py"
TWINS = ROOT / "examples" / "plugin_twin_views.py"
TILES = ROOT / "examples" / "plugin_tiles.py"
_SHORT = ("--epochs", "2", "--batch-size", "64")


def forget(name: str) -> None:
    """As in a process that has not loaded it."""
    for where in [where for where, module in plugins.loaded().items() if module.__name__ == name]:
        del plugins._loaded[where]
        for preset in [preset for preset, one in PRESETS.items() if where in one.settings.plugins]:
            del PRESETS[preset]
    sys.modules.pop(name, None)
    for member in [member for member in METHODS if member.__module__ == name]:
        METHODS.forget(member.kind)
    for known in [known for known, facts in DATASETS.items() if getattr(facts.source, "__module__", "") == name]:
        del DATASETS[known]


@pytest.fixture(autouse=True)
def unloaded() -> Iterator[None]:
    path = list(sys.path)
    yield
    for name in ("plugin_centres", "plugin_twin_views", "plugin_tiles", "broken", "statistics_of_mine"):
        forget(name)
    sys.path[:] = path


def test_its_preset_is_listed_and_its_settings_are_flags(capsys: Any) -> None:
    assert main(["list", "--plugin", str(EXAMPLE)]) == 0
    assert "centres-vit" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--plugin", str(EXAMPLE), "centres-vit", "--help-all"])
    assert "--centre-margin X" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "preset"),
    [
        pytest.param(TWINS, "twin-views", marks=pytest.mark.exhaustive),
        pytest.param(EXAMPLE, "centres-vit", marks=pytest.mark.exhaustive),
    ],
)
def test_three_stages_over_ray_give_the_serial_bits(
    file: Path, preset: str, tmp_path: Path, cluster: None, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    plugin = f"--plugin={file}"
    assert main([preset, plugin, *_SHORT, "--executor", "serial", "--run-dir", "serial"]) == 0
    assert main([preset, plugin, *_SHORT, "--stages", "3", "--run-dir", "ray"]) == 0
    serial, ray = (load_file(tmp_path / name / "last.safetensors") for name in ("serial", "ray"))
    assert serial.keys() == ray.keys()
    assert all(torch.equal(value, ray[name]) for name, value in serial.items())


def test_its_optimizer_and_rates_are_its_own(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["twin-views", f"--plugin={TWINS}", "--executor", "serial", "--readout-epochs", "1"]
    assert main([*arguments, "--max-steps", "1", "--run-dir", "one"]) == 0
    assert main([*arguments, "--max-steps", "1", "--lr", "1e-12", "--run-dir", "start"]) == 0
    assert main([*arguments, "--epochs", "8", "--run-dir", "more"]) == 0
    one, start = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "start"))
    assert any(name.endswith("optimizer.qkv.weight.momentum_buffer") for name in one)
    assert not any("exp_avg" in name for name in one if ".optimizer." in name)
    # In the first step SGD moves a weight by lr · 1/20 · (gradient + decay), and that is its momentum.
    name = "layers.0.net.qkv.weight"
    moved = one["layers.0.optimizer.qkv.weight.momentum_buffer"] * 0.05 / 20
    assert moved.abs().max() > 1e-5
    assert torch.allclose(start[name] - one[name], moved, atol=1e-7)
    losses = load_file(tmp_path / "more" / "steps.safetensors")
    assert all(values[-10:].mean() < 0.8 * values[:10].mean() for values in losses.values())


def test_a_run_knows_its_plug_in(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--plugin", str(EXAMPLE), "centres-vit", *_SHORT, "--executor", "serial"]
    assert main([*arguments, "--run-dir", "run"]) == 0
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert saved["plugins"] == [str(EXAMPLE)]
    forget("plugin_centres")
    assert main(["eval", "run"]) == 0
    forget("plugin_centres")
    assert main(["--config", "run/config.json", "--run-dir", "again"]) == 0
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "again"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_data_set_is_listed_prepared_trained_on_and_found_again(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setenv("LOCALPIPE_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    plugin = f"--plugin={TILES}"
    assert main(["list", plugin]) == 0
    assert re.search(r"tiles .*bright corner.*on first use", capsys.readouterr().out)
    small = ["--dim", "16", "--heads", "2", "--depth", "2", *_SHORT, "--readout-epochs", "8"]
    assert main(["cff-vit", plugin, "--data", "tiles", *small, "--executor", "serial", "--run-dir", "run"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test_accuracy"] > 0.4, "a guess is right for one in four"
    assert main(["list", plugin]) == 0
    assert "400 train, 100 test" in " ".join(capsys.readouterr().out.split())
    forget("plugin_tiles")
    assert main(["eval", "run"]) == 0
    forget("plugin_tiles")
    assert main(["prepare", "tiles", plugin, "--data-dir", "elsewhere"]) == 0
    assert (tmp_path / "elsewhere" / "tiles").is_dir()


def test_a_data_set_of_a_taken_name_is_refused_naming_both(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "statistics_of_mine.py"
    file.write_text(TILES.read_text().replace('name="tiles"', 'name="digits"'))
    assert main(["list", "--plugin", str(file)]) == 2
    assert "two data sets are called 'digits': Handwritten digits" in capsys.readouterr().err


def test_a_data_set_that_does_not_say_how_it_is_opened_is_refused(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "statistics_of_mine.py"
    file.write_text(TILES.read_text().replace("        source=TilesSource,\n", ""))
    assert main(["list", "--plugin", str(file)]) == 2
    assert "data set 'tiles': give either source, which needs no files, or open" in capsys.readouterr().err
    assert "tiles" not in DATASETS


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("missing.py", None, "no such file"),
        ("broken.py", "1 / 0", "importing it failed: ZeroDivisionError"),
        ("json.py", "", "a module called 'json' is there already"),
        ("no-name.py", "", "cannot be a module's name"),
    ],
)
def test_a_plug_in_that_cannot_be_is_one_message(
    tmp_path: Path, capsys: Any, file: str, text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / file).write_text(text)
    assert main(["list", "--plugin", str(tmp_path / file)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_plugin_without_a_file_is_one_message(capsys: Any) -> None:
    assert main(["list", "--plugin"]) == 2
    assert "--plugin needs a Python file" in capsys.readouterr().err


def test_a_taken_preset_name_is_refused(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "statistics_of_mine.py"
    file.write_text("from launch.presets import PRESETS as known\nPRESETS = {'cff-vit': known['cff-vit']}\n")
    assert main(["list", "--plugin", str(file)]) == 2
    assert "there is a preset 'cff-vit' already" in capsys.readouterr().err


def test_a_package_that_is_installed_needs_no_flag(monkeypatch: Any, capsys: Any) -> None:
    class Point:
        value = "plugin_centres:PRESETS"

    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    monkeypatch.setattr(plugins, "entry_points", lambda group: [Point()] if group == plugins.GROUP else [])
    assert main(["list"]) == 0
    assert "centres-vit" in capsys.readouterr().out
