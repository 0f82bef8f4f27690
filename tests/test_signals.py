"""Signals that ask a program to stop."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.cli import main
from launch.commands.train import Interrupts
from launch.signals import INTERRUPTED, STOPPING, Interrupt, heard_by, process_began
from tests.support_cli import launch
from workers.cluster import _handlers_kept

_ROOT = Path(__file__).parent.parent
_IGNORE = 1  # a C library's SIG_IGN


def said_by(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=_ROOT).stdout


@pytest.mark.parametrize("number", STOPPING)
def test_each_of_them_is_ctrl_c(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # a shell has what it starts in the background ignore SIGINT
    try:
        with heard_by(Interrupt()), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_what_nohup_ignores_stays_ignored() -> None:
    program = (
        "import signal\n"
        "from launch.signals import Interrupt, heard_by\n"
        "with heard_by(Interrupt()):\n"
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


def test_handlers_that_a_library_replaces_while_ray_starts_are_put_back() -> None:
    """As Ray's own does with SIGTERM, behind Python's back."""
    with heard_by(Interrupt()):
        with _handlers_kept():
            libc = ctypes.CDLL(None)
            libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
            libc.signal(int(signal.SIGTERM), _IGNORE)
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.exhaustive  # above is why; test_failures.py stops a run that trains
def test_ray_leaves_sigterm_to_the_program_from_the_moment_it_has_started() -> None:
    """Symptom: exit 134 with a stack, where SIGTERM came while data were opened and Ray had started."""
    program = (
        "import os, signal, time\n"
        "from launch.presets import PRESETS\n"
        "from launch.signals import Interrupt, heard_by\n"
        "from workers.cluster import StartingCluster\n"
        "with heard_by(Interrupt()), StartingCluster(PRESETS['cff-vit'].settings) as starting:\n"
        "    while not starting._ready.wait(0.1):\n"
        "        pass\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(5)\n"
        "    except KeyboardInterrupt:\n"
        "        print('heard')\n"
    )
    assert "heard" in said_by(sys.executable, "-c", program)


def test_one_that_an_import_has_made_another_error_of_is_still_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Symptom: "SystemError: initialization of … raised unreported exception" with a traceback, out of scikit-learn."""

    def load_digits(**_: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as interrupt:
            raise SystemError("initialization of _openmp_helpers raised unreported exception") from interrupt

    monkeypatch.setenv("LOCALPIPE_DATA", str(tmp_path))
    monkeypatch.setattr("sklearn.datasets.load_digits", load_digits)
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever starts the tests may ignore it
    try:
        assert main(["cff-vit", "--executor", "serial", "--run-dir", str(tmp_path / "run")]) == INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.splitlines()[-1] == "stopped"


def test_one_that_comes_while_another_is_obeyed_is_not_heard() -> None:
    """Symptom: five Ctrl-C in a row ended in a traceback out of Ray's shutdown."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with heard_by(Interrupt()):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            for _ in range(4):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_one_of_each_kind_is_one_wish_and_two_of_a_kind_stop_a_run_at_once() -> None:
    """Symptom: a sweep's run whose job Ray stopped got two, Ray's and the sweep's, and saved no checkpoint."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in STOPPING}
    try:
        interrupts = Interrupts()
        interrupts.begun = True
        with heard_by(interrupts.hear):
            for number in STOPPING:
                signal.raise_signal(number)
            assert interrupts.asked.is_set()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hears(process: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) >> (number - 1) & 1)


def stopped_after(seconds: float, folder: Path, *arguments: str, times: int = 1) -> tuple[int, str]:
    """Exit status and output of `launch`, interrupted so long after it was started."""
    folder.mkdir()
    launched = launch(folder, *arguments)
    while not hears(launched.process.pid, signal.SIGHUP):  # before that the interpreter itself is starting
        assert launched.process.poll() is None, launched.text()
        time.sleep(0.005)
    time.sleep(seconds)
    for _ in range(times):
        launched.stop(signal.SIGINT)
        time.sleep(0.1)
    return launched.finish(), launched.text()


@pytest.mark.slow
@pytest.mark.parametrize("command", [["cff-vit", "--executor", "serial"], ["list"], ["doctor"]])
def test_ctrl_c_while_it_starts_is_one_word(command: list[str], tmp_path: Path) -> None:
    """Symptom: a traceback out of whatever was being imported."""
    ours = [*command, "--run-dir", str(tmp_path / "run")] if command[0] == "cff-vit" else command
    for number, seconds in enumerate((0, 0.2, 0.6, 1.0, 1.5)):
        status, said = stopped_after(seconds, tmp_path / str(number), *ours)
        if status == 0 and command[0] != "cff-vit":
            break  # it was done by then
        assert status == INTERRUPTED, said
        assert "Traceback" not in said
        if (tmp_path / "run").exists():
            assert "go on with: launch resume" in said
            break  # it was training by then
        assert said.splitlines()[-1] == "stopped"


@pytest.mark.slow
def test_five_ctrl_c_in_a_row_leave_neither_a_traceback_nor_a_process(tmp_path: Path) -> None:
    launched = launch(tmp_path, "cff-vit", "--run-dir", str(tmp_path / "run"))
    launched.wait_for("starting Ray")
    time.sleep(2)
    for _ in range(5):
        if launched.process.poll() is None:
            launched.stop(signal.SIGINT)
        time.sleep(0.2)
    assert launched.finish() == INTERRUPTED, launched.text()
    assert "Traceback" not in launched.text()
    assert launched.text().splitlines()[-1] == "stopped"
    launched.assert_nothing_left()
    assert not (tmp_path / "run").exists()
