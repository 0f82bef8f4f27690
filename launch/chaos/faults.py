"""What `launch chaos` does to a run: to its processes and to its checkpoints, by real signals and real bytes."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launch.chaos.victim import Victim
from launch.output.console import counted
from pipeline.checkpoints.folder import MANIFEST, CheckpointFolder

STALL = 10.0
"""Seconds after which a stopped worker counts as stuck."""

PAUSE = STALL / 2
"""Seconds for which one is stopped that must not count as stuck, at most."""

WORD = 60.0
"""Seconds within which a run that cannot save says so."""

_UNSAVED = "could not be saved"  # in what it says then


@dataclass(frozen=True)
class Fault:
    """One kind of disturbance.

    Attributes:
        name: for people.
        after: what the run does about it: "restart" by itself, "resume" where the launching process ends with it and
            `launch resume` goes on, "nothing" where it goes on as if nothing had been.
        strike: does it; returns what it did it to, or None where the run has nothing of the kind.
    """

    name: str
    after: Literal["restart", "resume", "nothing"]
    strike: Callable[[Victim, random.Random], str | None]


def _signal(kind: str, number: signal.Signals) -> Callable[[Victim, random.Random], str | None]:
    def strike(victim: Victim, choose: random.Random) -> str | None:
        found = sorted(pid for pid, command in victim.descendants().items() if kind in command)
        if not found:
            return None
        pid = choose.choice(found)
        with suppress(ProcessLookupError):  # it ended while we chose
            os.kill(pid, number)
        return f"process {pid}"

    return strike


def _pause(victim: Victim, choose: random.Random) -> str | None:
    """Stops a stage for less than a stuck one would be: nobody may mind."""
    found = sorted(pid for pid, command in victim.descendants().items() if "ray::StageWorker" in command)
    if not found:
        return None
    pid, seconds = choose.choice(found), choose.uniform(0.5, PAUSE)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)
    return f"process {pid}, {seconds:.1f} s"


def _fail_writing(victim: Victim, choose: random.Random) -> str | None:
    """Has every process that writes checkpoints write no byte more, as on a full disk, until it is told."""
    writers = [pid for pid, command in victim.descendants().items() if "checkpoints/writer.py" in command]
    if not writers:
        return None
    begun = time.monotonic()
    limits = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in writers}
    for pid, (_, hard) in limits.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        victim.wait_for("word of it", lambda: victim.first(_UNSAVED, since=begun) is not None, WORD, or_end=True)
    finally:
        for pid, limit in limits.items():
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)
    return counted(len(writers), "process", "processes")


def _launcher(number: signal.Signals) -> Callable[[Victim, random.Random], str | None]:
    def strike(victim: Victim, choose: random.Random) -> str | None:
        victim.process.send_signal(number)
        return f"process {victim.process.pid}"

    return strike


def _damage(victim: Victim, choose: random.Random) -> str | None:
    """Changes a byte of the newest checkpoint, and kills the launching process before it saves another."""
    victim.process.kill()
    victim.process.wait()
    folder = CheckpointFolder(victim.run / "checkpoints")
    whole = folder.whole()
    if len(whole) < 2:
        return "process alone: one checkpoint must stay"
    file = choose.choice(sorted(file for file in (folder.path / whole[-1]).iterdir() if file.name != MANIFEST))
    content = bytearray(file.read_bytes())
    content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
    file.write_bytes(bytes(content))
    return str(Path(whole[-1]) / file.name)


FAULTS: Mapping[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault("stage killed", "restart", _signal("ray::StageWorker", signal.SIGKILL)),
        Fault("stage terminated", "restart", _signal("ray::StageWorker", signal.SIGTERM)),
        Fault("stage crashed", "restart", _signal("ray::StageWorker", signal.SIGSEGV)),
        Fault("stage stopped", "restart", _signal("ray::StageWorker", signal.SIGSTOP)),
        Fault("stage paused", "nothing", _pause),
        Fault("feeder killed", "restart", _signal("ray::FeederWorker", signal.SIGKILL)),
        Fault("coordinator killed", "restart", _signal("ray::CoordinatorWorker", signal.SIGKILL)),
        Fault("raylet killed", "restart", _signal("/raylet ", signal.SIGKILL)),
        Fault("Ray's head killed", "restart", _signal("/gcs_server ", signal.SIGKILL)),
        Fault("writer killed", "nothing", _signal("checkpoints/writer.py", signal.SIGKILL)),
        Fault("disk full", "nothing", _fail_writing),
        Fault("launcher killed", "resume", _launcher(signal.SIGKILL)),
        Fault("launcher terminated", "resume", _launcher(signal.SIGTERM)),
        Fault("checkpoint damaged", "resume", _damage),
    )
}
"""Every kind by its name."""
