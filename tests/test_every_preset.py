"""Every preset as it is typed, with no flag: its first step comes, or the message that tells what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from launch.presets import PRESETS
from pipeline.data.registry import DATASETS
from tests.support_bits import assert_recorded
from tests.support_cli import in_fresh_python
from tests.support_data import prepare_made_up

PUBLISHED = [name for name, preset in PRESETS.items() if not DATASETS[preset.settings.data.data].embedded]
"""Presets whose data set has to be prepared."""


OVER_RAY = ("dcl-fc",)
"""The preset that `make test` runs over Ray with label embeddings that learn; one of CFF is among the commands of the
README, which are run as well, one of CFL in `test_failures.py`. `make test-all` runs the others too."""

LARGE = (
    "scff-conv-stl10",
    "infopro-vgg8b-cont",
    "infopro-vgg8b-contrec",
    "infopro-vgg8b-pred",
    "infopro-resnet110",
    "auglocal-resnet110",
)
"""Presets whose step takes more than ten seconds of a core. `make test-all` runs them."""


_KINDS = {(preset.settings.method.kind, preset.settings.net.kind): name for name, preset in reversed(PRESETS.items())}
EVERY_DAY = set(_KINDS.values()) - set(LARGE)
"""A preset of each method on each net, which `make test` trains. `make test-all` trains the others too."""

SMALLER = {
    "cafo-mnist": ("--channels", "8", "16", "32"),
    "cafo-cifar10": ("--channels", "8", "16", "32"),
    "scff-conv-cifar10": ("--channels", "8", "16", "32"),
    "dcl-vgg8b": ("--scale", "0.25"),
}
"""Flags of presets that would take many seconds all the same: their nets are wide, or the least squares of every block
take seconds, however few images there are. As they are they are planned below."""


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with made-up images under the name of every data set that a preset is for."""
    folder = tmp_path_factory.mktemp("made-up")
    for name in sorted({preset.settings.data.data for preset in PRESETS.values()}):
        if not DATASETS[name].embedded:
            prepare_made_up(folder, name, num_train=1200, num_test=20)
    return folder


@pytest.mark.parametrize(
    "preset",
    [pytest.param(name, marks=() if name in OVER_RAY else pytest.mark.exhaustive) for name in PRESETS],
)
def test_a_preset_without_flags_trains(
    preset: str, made_up: Path, cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    in_folder(tmp_path, made_up, monkeypatch)
    assert_recorded(preset, assert_trained(preset, main([preset]), tmp_path, capsys))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_can_be_planned(preset: str, made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check of a run with its own batches, without one."""
    in_folder(tmp_path, made_up, monkeypatch)
    assert main([preset, "--dry-run"]) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=() if name in EVERY_DAY else pytest.mark.exhaustive) for name in PRESETS]
)
def test_a_preset_trains_in_threads(
    preset: str, made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Its net, method, data and stages, in batches that take a tenth of the time."""
    in_folder(tmp_path, made_up, monkeypatch)
    status = main([preset, "--executor", "threads", "--batch-size", "64", *SMALLER.get(preset, ())])
    assert_trained(preset, status, tmp_path, capsys)


def in_folder(folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LOCALPIPE_DATA", str(data))
    monkeypatch.setenv("LOCALPIPE_MAX_STEPS", "1")


def assert_trained(preset: str, status: int, place: Path, capsys: Any) -> Path:
    """The run that is in a folder took its step and says so; returns where it is."""
    assert status == 0
    (folder,) = (place / "runs").iterdir()
    assert folder.name.startswith(f"{preset}-")
    summary = json.loads((folder / "summary.json").read_text())
    settings = PRESETS[preset].settings
    phases = len(settings.method.phases(settings.method.adapt(settings.net).num_layers))
    assert (summary["status"], summary["preset"], summary["epochs_finished"]) == ("finished", preset, phases)
    assert summary["seconds"]["start_up"] > 0
    assert "first batch" in capsys.readouterr().out
    return folder


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_preset_whose_data_are_not_prepared_says_so_before_anything_starts(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCALPIPE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("workers.cluster.StartingCluster.__enter__", lambda self: pytest.fail("Ray was started"))
    assert main([preset]) == 2
    said = capsys.readouterr().err
    assert f"`launch prepare {PRESETS[preset].settings.data.data}`" in said
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_sizes_of_nets_take_no_compiler() -> None:
    """Symptom: for sizes on the meta device torch imported its compiler, seconds before every run's first step."""
    program = (
        "import sys\n"
        "from launch.presets import PRESETS\n"
        "from pipeline.nets.sizes import layer_features, num_parameters\n"
        "for name, preset in PRESETS.items():\n"
        "    net = preset.settings.method.adapt(preset.settings.net.resolve((3, 32, 32)))\n"
        "    assert len(layer_features(net, (3, 32, 32))) == net.num_layers\n"
        "    built = [net.build(index, (3, 32, 32)) for index in range(net.num_layers)]\n"
        "    assert num_parameters(net, (3, 32, 32)) == sum(p.numel() for layer in built for p in layer.parameters())\n"
        "    assert not {'torch._dynamo', 'sympy'} & sys.modules.keys(), name\n"
    )
    in_fresh_python(program)
