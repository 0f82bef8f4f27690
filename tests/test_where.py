"""Which cluster a run is on: the one that is named, else the one that runs here, else its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from tests.support_cli import launch
from workers.where import where

_NOBODY = 65534


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ray's temporary folder, and nothing in the environment."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray"


@contextmanager
def node(user: int | None = None) -> Iterator[str]:
    """The address of a cluster of which a process here, this user's or another's, is a node: it has a raylet's name
    and arguments."""
    address = "192.0.2.1:6379"
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        Path(place).chmod(0o755)
        program = Path(place, "raylet")
        shutil.copy(shutil.which("bash") or "/bin/bash", program)
        command = [str(program), "-c", "read", "raylet", f"--gcs-address={address}"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd="/", user=user)
        while address.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes():  # a moment after it is started
            time.sleep(0.01)
        yield address
        process.kill()
        process.communicate()


@pytest.fixture
def raylet() -> Iterator[str]:
    with node() as address:
        yield address


def test_without_a_word_and_without_a_node_here_a_run_has_a_cluster_of_its_own(folder: Path) -> None:
    assert not where(None).joined


def test_a_node_that_runs_here_is_joined(folder: Path, raylet: str) -> None:
    (folder / "ray_current_cluster").write_text(raylet)
    place = where(None)
    assert (place.address, place.why.split(";")[0]) == (raylet, "of the Ray node on this machine")


def test_a_node_that_is_gone_is_not_waited_for(folder: Path) -> None:
    """Ray leaves its note behind where it is killed."""
    (folder / "ray_current_cluster").write_text("192.0.2.1:6379")
    assert not where(None).joined


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to run something as another user")
def test_a_node_that_somebody_else_runs_here_is_not_joined(folder: Path) -> None:
    """Whoever may write to Ray's folder in /tmp could have runs join a cluster of theirs."""
    with node(user=_NOBODY) as address:
        (folder / "ray_current_cluster").write_text(address)
        assert not where(None).joined


def test_a_private_cluster_of_another_run_is_not_joined(folder: Path, raylet: str) -> None:
    assert not where(None).joined


def test_a_name_goes_before_the_environment_and_that_before_a_node_here(
    folder: Path, raylet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "ray_current_cluster").write_text(raylet)
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:10001")
    assert where(None).address == "ray://elsewhere:10001"
    assert where("auto").address == "auto"
    assert not where("local").joined


def test_the_first_line_says_which_cluster_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{taken.getsockname()[1]}")
        launched = launch(tmp_path, "cff-vit")
        assert launched.finish() == 1
    said = launched.text().splitlines()[0]
    assert "joining the Ray cluster at 127.0.0.1:" in said and said.endswith("(RAY_ADDRESS is set) …")


def test_a_cluster_of_other_machines_is_not_waited_for(capsys: Any) -> None:
    """Symptom: Ray tried for a minute, and then said that it cannot connect."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert main(["cff-vit", "--address", address]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {address} is the cluster of other machines")
    assert "--address ray://127.0.0.1:10001" in said


@pytest.mark.parametrize("given", [["--ray-address", "nowhere:1:2"], ["--ray-address=nowhere:1:2"]])
def test_the_flag_s_old_name_is_still_taken(given: list[str], capsys: Any) -> None:
    assert main(["cff-vit", *given]) == 1
    assert "The Ray cluster at nowhere:1:2 cannot be reached" in capsys.readouterr().err
