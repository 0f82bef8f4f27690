"""A machine without a home folder to write to is one sentence, with what to set."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from pipeline.layers.compile import compiled

_RUN = ["cff-vit", "--executor", "serial", "--device", "cpu"]


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user that the machine does not know, without HOME, as in a container with a user number of its own."""

    def unknown(number: int) -> pwd.struct_passwd:
        raise KeyError(number)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("LOCALPIPE_DATA", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", [_RUN, ["list"], ["prepare", "digits"], ["doctor"]])
def test_no_home_at_all_is_one_sentence(command: list[str], nobody: None, capsys: Any) -> None:
    """Symptom: RuntimeError: Could not determine home directory."""
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "there is no home folder" in line and "LOCALPIPE_DATA" in line


def test_a_folder_of_ones_own_needs_no_home(nobody: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALPIPE_DATA", str(tmp_path / "data"))
    assert main(["prepare", "digits"]) == 0


@pytest.mark.parametrize("home", ["/proc/nope", "/dev/null", "file"])
def test_a_home_that_cannot_be_written_is_one_sentence(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / home))
    monkeypatch.delenv("LOCALPIPE_DATA", raising=False)
    assert main(_RUN) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be created" in line and "LOCALPIPE_DATA" in line
    assert main(["list"]) == 0


def test_compiled_code_needs_no_home(nobody: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")  # so that it is afterwards as it was before
        monkeypatch.delenv(name)
    compiled(abs, "on")
    assert "localpipe" not in os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")  # PyTorch may have chosen one
