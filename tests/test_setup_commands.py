"""Workers that share one home folder, as over NFS, run the setup commands of cluster.yaml at the same time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
_INSTALL, _PATH_LINE = yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))["setup_commands"]
_SECONDS = 120  # a busy machine

pytestmark = pytest.mark.skipif(
    not (shutil.which("flock") and shutil.which("make")), reason="the setup commands need flock and make"
)

_PYTHON = f"""#!/bin/bash
# Makes a virtual environment of itself, and writes down when a pip begins and ends; everything else is Python's.
[[ $1 == -m ]] || exec {sys.executable} "$@"
case $2 in
    venv) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    pip)
        echo begin >> ~/pip.log
        sleep 0.2; while [[ -e ~/held ]]; do sleep 0.05; done
        echo end >> ~/pip.log ;;
esac
"""


class Home:
    """A home folder with localpipe in it as `ray up` copies it, and a Python whose pip only pretends."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        there = folder / "localpipe"
        (there / "tools").mkdir(parents=True)
        for name in ("Makefile", "pyproject.toml", "constraints.txt", "tools/install_torch.sh"):
            shutil.copy2(ROOT / name, there / name)
        python = folder / "bin" / "python3"
        python.parent.mkdir()
        python.write_text(_PYTHON)
        python.chmod(0o755)
        self.bashrc, self.installed = folder / ".bashrc", there / ".venv" / "installed"
        self._held = folder / "held"

    def set_up(self) -> subprocess.Popen[str]:
        """Starts what `ray up` does on a worker."""
        process = subprocess.Popen(
            ["bash", "-c", f"({_INSTALL}) && ({_PATH_LINE})"],
            env={"HOME": str(self._folder), "PATH": f"{self._folder}/bin:{os.environ['PATH']}", "ACCELERATOR": "cuda"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._stack.callback(process.wait)
        self._stack.callback(self._kill, process)
        return process

    def _kill(self, process: subprocess.Popen[str]) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)

    def hold(self) -> None:
        """From now on a pip that has begun goes on until ``let_go``."""
        self._held.touch()

    def let_go(self) -> None:
        self._held.unlink()

    @property
    def pips(self) -> list[str]:
        """What all of them have written down."""
        log = self._folder / "pip.log"
        return log.read_text().split() if log.exists() else []


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with ExitStack() as stack:
        yield Home(tmp_path, stack)


def _until(holds: Callable[[], object], otherwise: str) -> None:
    end = time.monotonic() + _SECONDS
    while not holds():
        assert time.monotonic() < end, otherwise
        time.sleep(0.05)


def _of_session(process: subprocess.Popen[str]) -> list[str]:
    """Programs that a process has started."""
    listed = subprocess.run(["ps", "-o", "comm=", "-s", str(process.pid)], check=False, capture_output=True, text=True)
    return listed.stdout.split()


def _finished(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=_SECONDS)
    assert process.returncode == 0, said
    return said


def test_one_installs_at_a_time_and_the_others_find_it_done(home: Home) -> None:
    said = [_finished(process) for process in [home.set_up() for _ in range(3)]]
    assert home.pips == ["begin", "end"] * (len(home.pips) // 2)
    assert len(home.pips) == 4, "torch and the rest, once"
    assert sum("is installed" in one for one in said) == 1
    assert home.installed.exists()


def test_one_that_is_killed_while_it_installs_keeps_nobody_waiting(home: Home) -> None:
    home.hold()
    first = home.set_up()
    _until(lambda: home.pips, "no pip")
    second = home.set_up()
    _until(lambda: "flock" in _of_session(second), "it does not wait")
    assert home.pips == ["begin"]
    os.killpg(first.pid, signal.SIGKILL)
    home.let_go()
    _finished(second)
    assert home.pips == ["begin", *["begin", "end"] * 2], "what was broken off is done anew"
    assert home.installed.exists()


def test_the_path_is_written_once(home: Home) -> None:
    for _ in range(2):
        _finished(home.set_up())
    assert home.bashrc.read_text().count("localpipe/.venv/bin") == 1
