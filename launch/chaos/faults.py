"""What `launch chaos` does to a run: to its processes and to its checkpoints, by real signals and real bytes."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launch.chaos.victim import Victim
from pipeline.checkpoints.folder import MANIFEST, CheckpointFolder


@dataclass(frozen=True)
class Fault:
    """One kind of disturbance.

    Attributes:
        name: for people.
        by_hand: the launching process ends with it, and `launch resume` goes on.
        strike: does it; returns what it did it to, or None where the run has nothing of the kind.
    """

    name: str
    by_hand: bool
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
        Fault("stage killed", False, _signal("ray::StageWorker", signal.SIGKILL)),
        Fault("stage terminated", False, _signal("ray::StageWorker", signal.SIGTERM)),
        Fault("stage crashed", False, _signal("ray::StageWorker", signal.SIGSEGV)),
        Fault("stage stopped", False, _signal("ray::StageWorker", signal.SIGSTOP)),
        Fault("feeder killed", False, _signal("ray::FeederWorker", signal.SIGKILL)),
        Fault("coordinator killed", False, _signal("ray::CoordinatorWorker", signal.SIGKILL)),
        Fault("raylet killed", True, _signal("/raylet ", signal.SIGKILL)),
        Fault("Ray's head killed", True, _signal("/gcs_server ", signal.SIGKILL)),
        Fault("launcher killed", True, _launcher(signal.SIGKILL)),
        Fault("launcher terminated", True, _launcher(signal.SIGTERM)),
        Fault("checkpoint damaged", True, _damage),
    )
}
"""Every kind by its name."""
