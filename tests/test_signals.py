"""Signals that ask a program to stop."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.signals import STOPPING, heard_by, interrupt, process_began

_ROOT = Path(__file__).parent.parent


def said_by(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=_ROOT).stdout


@pytest.mark.parametrize("number", STOPPING)
def test_each_of_them_is_ctrl_c(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # a shell has what it starts in the background ignore SIGINT
    try:
        with heard_by(interrupt), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_what_nohup_ignores_stays_ignored() -> None:
    program = (
        "import signal\n"
        "from launch.signals import heard_by, interrupt\n"
        "with heard_by(interrupt):\n"
        "    signal.raise_signal(signal.SIGHUP)\n"
        "print('went on')\n"
    )
    assert "went on" in said_by("nohup", sys.executable, "-c", program)


def test_a_process_knows_when_it_was_started() -> None:
    """Its interpreter's own start counts, which no clock inside it sees."""
    asked = time.time()
    program = "import time; time.sleep(0.3); from launch.signals import process_began; print(process_began())"
    began = float(said_by(sys.executable, "-c", program))
    assert asked - 0.05 <= began <= time.time() - 0.3
    assert process_began() < asked
