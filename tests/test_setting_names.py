"""The library names settings and knows no flag; the command line puts the flag in a setting's place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

import launch
from launch.cli import main
from launch.command_line.flags import flags_of, setting_paths
from launch.command_line.parse import RunArguments
from launch.command_line.setting_names import as_flags
from launch.presets import PRESETS
from pipeline import train
from pipeline.config.settings import (
    AugmentSettings,
    DataSettings,
    PipelineSettings,
    ReadoutSettings,
    Settings,
    TrainSettings,
    load,
)
from pipeline.errors import UserError
from pipeline.methods import METHODS, CffSettings
from pipeline.nets import NETS, VitSettings
from tests.support_documents import ROOT

_FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
_NAMED = re.compile(r"`([\w.]+)`")
FOREIGN = {
    "--batch-size": ("pipeline/errors.py", "says what the command line makes of a message"),
    "--gpus": ("pipeline/config/devices.py", "of docker and podman"),
    "--gcs-address": ("workers/where.py", "of Ray's own processes"),
    "--head": ("workers/where.py", "of `ray start`"),
    "--ignore-scripts": ("pipeline/data/packages.py", "of npm"),
    "--silent": ("pipeline/data/packages.py", "of npm"),
    "--pack-destination": ("pipeline/data/packages.py", "of npm"),
    "--dest": ("pipeline/data/packages.py", "of pip"),
    "--ignore-requires-python": ("pipeline/data/packages.py", "of pip"),
    "--no-deps": ("pipeline/data/packages.py", "of pip"),
    "--only-binary": ("pipeline/data/packages.py", "of pip"),
    "--quiet": ("pipeline/data/packages.py", "of pip"),
}
"""Flags that the library's sources do have: where, and why."""
NO_SETTINGS = {"digits": "a data set", "launch": "the command", "features": "a method of Network"}
"""Single words in backquotes that the library's sentences have beside settings."""


def literals(*, alone: bool) -> Iterator[tuple[str, str]]:
    """Place and text of every string in ``pipeline`` and ``workers``, parts of f-strings included.

    Args:
        alone: whether strings that are a statement of their own count: docstrings, and texts below fields.
    """
    for room in ("pipeline", "workers"):
        for file in sorted((ROOT / room).rglob("*.py")):
            tree = ast.parse(file.read_text())
            statements = set() if alone else {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in statements:
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", node.value


def test_no_text_of_the_library_names_a_flag() -> None:
    found = [f"{place}: {flag}" for place, text in literals(alone=True) for flag in _FLAG.findall(text)]
    allowed = {f"{file}: {flag}" for flag, (file, _) in FOREIGN.items()}
    assert {re.sub(r":\d+", "", one) for one in found} == allowed, "name the setting in backquotes instead"


def test_what_the_library_says_in_backquotes_are_settings() -> None:
    """A misspelt one would reach whoever typed a command as it is."""
    named = {name: place for place, text in literals(alone=False) for name in _NAMED.findall(text)}
    assert len(named) > 50
    unknown = {name: place for name, place in named.items() if as_flags(f"`{name}`") == f"`{name}`"}
    assert unknown.keys() == NO_SETTINGS.keys(), unknown


@pytest.mark.parametrize("preset", PRESETS)
def test_every_setting_becomes_its_flag_by_name_and_by_place(preset: str) -> None:
    """Also where nets or methods have a setting of the same name: it has the same flag in each."""
    for flag, path in setting_paths(PRESETS[preset].settings):
        assert as_flags(f"`{path[-1]}` 5, `{'.'.join(path)}` 5") == f"--{flag} 5, --{flag} 5"


def test_the_two_lists_of_flags_are_one() -> None:
    for preset in PRESETS.values():
        assert {flag for flag, _ in setting_paths(preset.settings)} == {flag.name for flag in flags_of(preset.settings)}


def test_no_built_in_setting_shares_its_name_with_one_of_another_flag() -> None:
    flags: dict[str, set[str]] = {}
    for kind in (Settings, *NETS, *METHODS):
        for flag, path in setting_paths(kind):
            flags.setdefault(path[-1], set()).add(flag)
    assert not {name: known for name, known in flags.items() if len(known) > 1}


@pytest.mark.parametrize(
    "text",
    [
        "no preset 'cff'. `launch list` shows what there is.",
        "train on the embedded `digits`",
        "Start one with `ray start --head`.",
        "a `preset` has no flag",
        "`epochs of` this",
        "``epochz``",
        "a lone ` stays",
        "train.epochs should be a valid integer",
    ],
)
def test_all_else_stays_as_it_is(text: str) -> None:
    assert as_flags(text) == text


# The same mistake, made in Python and on the command line

SERIAL = PipelineSettings(executor="serial", device="cpu")
RUN = Settings(data=DataSettings(data="digits"), pipeline=SERIAL)
_TOO_FEW = "digits has 1294 training images (144 more validate), fewer than one batch"
_NO_PREDICTION = "layers trained by cff do not predict by themselves"

MISTAKES: dict[str, tuple[Settings, str, str, str]] = {
    "training": (
        replace(RUN, train=TrainSettings(batch_size=1)),
        "--batch-size 1",
        "`batch_size` 1: a contrastive loss compares images with each other. Give at least 2.",
        "--batch-size 1: a contrastive loss compares images with each other. Give at least 2.",
    ),
    "too few images": (
        replace(RUN, train=TrainSettings(batch_size=5000)),
        "--batch-size 5000",
        f"`batch_size` 5000: {_TOO_FEW}. Give at most `batch_size` 1294.",
        f"--batch-size 5000: {_TOO_FEW}. Give at most --batch-size 1294.",
    ),
    "readouts": (
        replace(RUN, readout=ReadoutSettings(mode="none")),
        "--readout none",
        f"`readout.mode` none: {_NO_PREDICTION}. Use `readout.mode` after or `readout.mode` online.",
        f"--readout none: {_NO_PREDICTION}. Use --readout after or --readout online.",
    ),
    "net": (
        replace(RUN, net=VitSettings(dim=64, heads=7)),
        "--dim 64 --heads 7",
        "`dim` 64 is not divisible by `heads` 7. Heads that divide it: 1, 2, 4, 8, 16, 32, 64.",
        "--dim 64 is not divisible by --heads 7. Heads that divide it: 1, 2, 4, 8, 16, 32, 64.",
    ),
    "method": (
        replace(RUN, method=CffSettings(temperature=0.0)),
        "--temperature 0",
        "`temperature` 0.0: must be a number above 0 (Aghagolzadeh & Ezoji 2025: 0.15).",
        "--temperature 0.0: must be a number above 0 (Aghagolzadeh & Ezoji 2025: 0.15).",
    ),
    "augmentation": (
        replace(RUN, augment=AugmentSettings(crop_padding=-1)),
        "--crop-padding -1",
        "`crop_padding` -1: must be 0 (no crop) or more.",
        "--crop-padding -1: must be 0 (no crop) or more.",
    ),
    "pipeline": (
        replace(RUN, pipeline=replace(SERIAL, stages=2)),
        "--stages 2",
        "`executor` serial has one stage, not 2. Leave `stages` out, or use `executor` ray.",
        "--executor serial has one stage, not 2. Leave --stages out, or use --executor ray.",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_python_reads_settings_and_the_command_line_flags(mistake: str, tmp_path: Path, capsys: Any) -> None:
    settings, typed, said, printed = MISTAKES[mistake]
    with pytest.raises(UserError) as refused:
        train(settings)
    assert str(refused.value) == said
    given = ["cff-vit", "--executor", "serial", "--device", "cpu", *typed.split(), "--run-dir", str(tmp_path / "run")]
    assert main(given) == 2
    assert capsys.readouterr().err == f"error: {printed}\n"


def test_launch_train_names_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^`batch_size` 1: .*Give at least 2\.$"):
        launch.train("cff-vit", batch_size=1, executor="serial", run_dir=tmp_path / "run")


def test_commands_have_settings_of_their_own(tmp_path: Path, capsys: Any) -> None:
    nowhere = tmp_path / "nowhere"
    assert main(["prepare", "cifar10", "--from", str(nowhere), "--data-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: --from {nowhere}: there is no such file or folder.")


def test_a_file_of_settings_is_named_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with pytest.raises(UserError, match=rf"^{re.escape(str(file))}: no such file\."):
        load(file)
    file.write_text("[]")
    with pytest.raises(UserError, match=rf"^{re.escape(str(file))}: holds no settings\."):
        load(file)


# Help


@pytest.mark.parametrize("preset", PRESETS)
def test_help_speaks_of_flags(preset: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main([preset, "--help-all"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "Passes over the training images for --readout after." in printed
    assert "with --partition balanced only" in printed
    assert not set(_NAMED.findall(printed)) - NO_SETTINGS.keys()


def test_texts_below_fields_speak_of_settings() -> None:
    texts = [flag.text for preset in PRESETS.values() for flag in flags_of(RunArguments(run=preset.settings))]
    assert "Passes over the training images for `readout.mode` after." in texts
    assert not [text for text in texts if _FLAG.search(text)]


# Plug-ins


@dataclass(frozen=True, kw_only=True)
class Scaled(VitSettings):
    """A net of a plug-in, with a setting whose flag has another name, and one whose name the readouts have too."""

    kind: ClassVar[str] = "scaled"
    warp: float = field(default=1.0, metadata={"flag": "warp-factor"})
    """How far."""
    mode: str = "plain"
    """Plain or not."""


@pytest.fixture
def plugin() -> Iterator[None]:
    NETS.register(Scaled)
    yield
    NETS.forget(Scaled.kind)


@pytest.mark.usefixtures("plugin")
def test_settings_of_plug_ins_become_flags() -> None:
    assert as_flags("`warp` 0 and `net.warp` 0") == "--warp-factor 0 and --warp-factor 0"


@pytest.mark.usefixtures("plugin")
def test_a_name_of_two_flags_stays_and_its_place_decides() -> None:
    said = as_flags("`mode` x: neither `net.mode` nor `readout.mode`")
    assert said == "`mode` x: neither --mode nor --readout"


def test_without_the_plug_in_its_settings_are_none() -> None:
    assert as_flags("`warp` 0, `mode` none") == "`warp` 0, --readout none"
