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

from launch.chaos import wires
from launch.chaos.victim import Victim
from launch.output.console import counted
from pipeline.checkpoints.folder import MANIFEST, CheckpointFolder
from pipeline.transport.message import HEADER_BYTES

STALL = 10.0
"""Seconds after which a stopped worker counts as stuck."""

PAUSE = STALL / 2
"""Seconds for which one is stopped that must not count as stuck, at most."""

WAITING = 10.0
"""Seconds within which a message is expected to wait between two neighbours: they take turns at being the faster."""

WORD = 60.0
"""Seconds within which a run that cannot save says so."""

_STAGE, _FEEDER, _COORDINATOR = "ray::StageWorker", "ray::FeederWorker", "ray::CoordinatorWorker"
_WRITER = "checkpoints/writer.py"

_UNSAVED = "could not be saved"  # in what it says then


@dataclass(frozen=True)
class Fault:
    """One kind of disturbance.

    Attributes:
        name: for people.
        after: what the run does about it: "restart" by itself, "resume" where the launching process ends with it and
            `launch resume` goes on, "nothing" where it goes on as if nothing had been, "either" where that or a restart
            may follow.
        strike: does it; returns what it did it to, or None where the run has nothing of the kind.
    """

    name: str
    after: Literal["restart", "resume", "nothing", "either"]
    strike: Callable[[Victim, random.Random], str | None]


def _signal(kind: str, number: signal.Signals) -> Callable[[Victim, random.Random], str | None]:
    def strike(victim: Victim, choose: random.Random) -> str | None:
        found = victim.named(kind)
        if not found:
            return None
        pid = choose.choice(found)
        with suppress(ProcessLookupError):  # it ended while we chose
            os.kill(pid, number)
        return f"process {pid}"

    return strike


def _pause(victim: Victim, choose: random.Random) -> str | None:
    """Stops a stage for less than a stuck one would be: nobody may mind."""
    found = victim.named(_STAGE)
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
    writers = victim.named(_WRITER)
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


def _intrude(victim: Victim, choose: random.Random) -> str | None:
    """Puts bytes that are no message between two neighbours, behind messages that wait there."""
    workers = victim.named(_STAGE) + victim.named(_FEEDER)
    end = time.monotonic() + WAITING
    while time.monotonic() < end:
        found = wires.with_messages(workers)
        if found:
            pid, file = choose.choice(found)
            if wires.intrude(pid, file, choose.randbytes(HEADER_BYTES)):
                return f"process {pid}"
        time.sleep(0.01)
    return None


def _cut(victim: Victim, choose: random.Random) -> str | None:
    """Cuts every network connection of a stage, as whoever pulls its machine's cable."""
    found = victim.named(_STAGE)
    if not found:
        return None
    pid = choose.choice(found)
    count = wires.cut(pid)
    return f"process {pid}, {counted(count, 'connection')}" if count else None


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
        Fault("stage killed", "restart", _signal(_STAGE, signal.SIGKILL)),
        Fault("stage terminated", "restart", _signal(_STAGE, signal.SIGTERM)),
        Fault("stage crashed", "restart", _signal(_STAGE, signal.SIGSEGV)),
        Fault("stage stopped", "restart", _signal(_STAGE, signal.SIGSTOP)),
        Fault("stage paused", "nothing", _pause),
        Fault("stage cut off", "either", _cut),
        Fault("message damaged", "restart", _intrude),
        Fault("feeder killed", "restart", _signal(_FEEDER, signal.SIGKILL)),
        Fault("coordinator killed", "restart", _signal(_COORDINATOR, signal.SIGKILL)),
        Fault("raylet killed", "restart", _signal("/raylet ", signal.SIGKILL)),
        Fault("Ray's head killed", "restart", _signal("/gcs_server ", signal.SIGKILL)),
        Fault("writer killed", "nothing", _signal(_WRITER, signal.SIGKILL)),
        Fault("disk full", "nothing", _fail_writing),
        Fault("launcher killed", "resume", _launcher(signal.SIGKILL)),
        Fault("launcher terminated", "resume", _launcher(signal.SIGTERM)),
        Fault("checkpoint damaged", "resume", _damage),
    )
}
"""Every kind by its name."""
