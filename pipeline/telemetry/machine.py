"""What a worker's machine is doing: its cores, its swap, and whether a GPU is slowed down. Read now and then."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.telemetry.gpu_clocks import GpuClocks

_EVERY = 5.0  # seconds between two readings, which take a millisecond
_STAT, _VMSTAT, _TASKS = Path("/proc/stat"), Path("/proc/vmstat"), Path("/proc/self/task")
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_IDLE, _STOLEN, _GUESTS = slice(3, 5), 7, 8  # places among a line's numbers: proc(5)


@dataclass(frozen=True, kw_only=True)
class MachineReading:
    """A machine's counters as a process there sees them; differences of two say what happened between.

    Attributes:
        boot: which machine, for programs. All containers of one machine have it in common.
        name: the same for people.
        process: its number.
        at: seconds on the machine's own clock.
        cores: that the machine has.
        busy: seconds of cores that all processes together have used.
        stolen: seconds of cores that a virtual machine's host gave to others.
        own: seconds of cores that this process has used.
        delayed: seconds that this process's living threads have waited for a core; None where the system does not tell.
        swapped_in: bytes that came back from swap.
        slowed: why the process's GPU is slowed down now, in words.
    """

    boot: str
    name: str
    process: int
    at: float
    cores: int
    busy: float
    stolen: float
    own: float
    delayed: float | None
    swapped_in: int
    slowed: tuple[str, ...]


class MachineProbe:
    """Reads for one process, off its training path.

    Args:
        device: that it computes on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._clocks: GpuClocks | None = None
        self._latest: MachineReading | None = None
        self._read_at = -_EVERY

    def read(self) -> MachineReading | None:
        """The machine now, or some seconds ago; None where the system does not tell (no Linux)."""
        now = time.monotonic()
        if now - self._read_at >= _EVERY:
            self._read_at = now
            self._latest = self._reading(now)
        return self._latest

    def _reading(self, now: float) -> MachineReading | None:
        try:
            first, *others = _STAT.read_text().splitlines()
            memory = _VMSTAT.read_text()
            boot = _BOOT.read_text().strip()
        except OSError:
            return None
        seconds = [int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in first.split()[1:]]
        if self._clocks is None and self._device.type == "cuda":
            self._clocks = GpuClocks(self._device)
        return MachineReading(
            boot=boot,
            name=os.uname().nodename,
            process=os.getpid(),
            at=now,
            cores=sum(line.startswith("cpu") for line in others),
            busy=sum(seconds[:_GUESTS]) - sum(seconds[_IDLE]) - seconds[_STOLEN],
            stolen=seconds[_STOLEN],
            own=time.process_time(),
            delayed=_delayed(),
            swapped_in=_counter(memory, "pswpin") * os.sysconf("SC_PAGE_SIZE"),
            slowed=self._clocks.slowed() if self._clocks is not None else (),
        )


def _counter(text: str, name: str) -> int:
    """Of lines "name number"; 0 where there is none."""
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} ")), 0)


def _delayed() -> float | None:
    """Seconds that this process's threads were ready to run and did not."""
    waited = 0
    found = False
    for task in _TASKS.iterdir():
        with suppress(OSError):  # the thread has ended, or the system keeps no such account
            waited += int((task / "schedstat").read_text().split()[1])
            found = True
    return waited / 1e9 if found else None
