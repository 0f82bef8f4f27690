"""Runs `launch` as a person does: a process of its own, in a session of its own, watched from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
_launched: list[Launched] = []


@dataclass
class Launched:
    """A running `launch` command; standard output and error in one file."""

    process: subprocess.Popen[str]
    output: Path

    def text(self) -> str:
        return self.output.read_text()

    def wait_for(self, text: str, seconds: float = 240) -> None:
        """Waits until the output holds the text."""
        end = time.monotonic() + seconds
        while text not in self.text():
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.text()}"
            assert time.monotonic() < end, f"{text!r} did not come:\n{self.text()}"
            time.sleep(0.1)

    def finish(self, seconds: float = 180) -> int:
        """Waits for the end; returns the exit status."""
        return self.process.wait(seconds)

    def stop(self, number: signal.Signals) -> None:
        """Asks it to stop. A terminal sends Ctrl-C to every process of the foreground group; others ask the one."""
        if number is signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def descendants(self) -> dict[int, str]:
        """Living processes of the command's session and their command lines: Ray's belong to it as well."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
            state, session = fields[0], int(fields[3])
            if session == self.process.pid and state != "Z" and int(entry.name) != self.process.pid:
                found[int(entry.name)] = command
        return found

    def end(self) -> None:
        """Ends it at once, with all that belongs to it."""
        for pid in [*self.descendants(), *([self.process.pid] if self.process.poll() is None else [])]:
            with contextlib.suppress(ProcessLookupError):  # it ended while we looked
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def assert_nothing_left(self, seconds: float = 60) -> None:
        """Every process that the command started is gone, soon after it has ended."""
        end = time.monotonic() + seconds
        while (left := self.descendants()) and time.monotonic() < end:
            time.sleep(0.1)
        assert not left, left


def launch(folder: Path, *arguments: str, shared: bool = False) -> Launched:
    """Starts `launch` with arguments; ``shared`` by several tests, it does not end with the one that starts it."""
    output = folder / "output.txt"
    # As in a terminal: a shell that starts the tests in the background lets them, and theirs, ignore these.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with output.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "launch", *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                cwd=ROOT,
            )
    finally:
        signal.signal(signal.SIGINT, ours[0])
        signal.signal(signal.SIGHUP, ours[1])
    launched = Launched(process, output)
    if not shared:
        _launched.append(launched)
    return launched


def in_fresh_python(program: str) -> str:
    """What a program prints in an interpreter of its own, in which nothing is imported yet. It must succeed."""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def end_all() -> None:
    """Ends what a test that failed has left running, with all that belongs to it."""
    while _launched:
        _launched.pop().end()
