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


@pytest.mark.slow
def test_ray_leaves_sigterm_to_the_program_from_the_moment_it_has_started() -> None:
    """Symptom: exit 134 with a stack, where SIGTERM came while data were opened and Ray had started."""
    program = (
        "import os, signal, time\n"
        "from launch.presets import PRESETS\n"
        "from launch.signals import heard_by, interrupt\n"
        "from workers.cluster import StartingCluster\n"
        "with heard_by(interrupt), StartingCluster(PRESETS['cff-vit'].settings) as starting:\n"
        "    while not starting._ready.wait(0.1):\n"
        "        pass\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(5)\n"
        "    except KeyboardInterrupt:\n"
        "        print('heard')\n"
    )
    assert "heard" in said_by(sys.executable, "-c", program)
