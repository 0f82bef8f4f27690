"""What the benchmark asks of every row: start, train a few steps whenever asked, say where the time went, end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal


class CannotRunError(Exception):
    """A row cannot run on this hardware; the message says why."""


@dataclass(frozen=True, kw_only=True)
class DeviceUse:
    """One device's part in a round. A CPU device is one process with ``--threads`` threads.

    Attributes:
        name: which it is, for people: "stage 1 (layers 1-2)", "rank 1".
        seconds: where the measured wall time went. Ours: busy, wait_in, wait_out, copy, sync, other. Backprop's: busy,
            communication (waiting for other devices included; on CUDA it is among other), wait_in (for the next
            batch), other.
        peak_bytes: most memory held during the round: resident set on a CPU, the allocator's peak on CUDA.
    """

    name: str
    seconds: dict[str, float]
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Round:
    """What a runner did in one turn, its warm-up steps apart.

    Attributes:
        images: of the measured steps; an image counts once, whatever its views.
        seconds: of the measured steps.
        devices: each device's part.
        bytes_per_step: sent between devices in one step, all devices together.
        loss: the last step's; where it is no number the figures are worthless.
    """

    images: int
    seconds: float
    devices: tuple[DeviceUse, ...]
    bytes_per_step: int
    loss: float


class Runner(ABC):
    """A row of the benchmark.

    Attributes:
        name: value of the flags that choose rows: "ddp", "1f1b-8".
        title: for people: "DDP backprop, 2 devices".
        family: whose learning it is.
    """

    name: str
    title: str
    family: Literal["backprop", "local"]

    @abstractmethod
    def start(self) -> None:
        """Processes, model, data, compilation and a warm-up.

        Raises:
            CannotRunError: not on this hardware, or not with this batch.
        """

    @abstractmethod
    def round(self, steps: int) -> Round:
        """Trains on for so many measured steps. Called many times; other runners run in between."""

    @abstractmethod
    def close(self) -> None:
        """Ends everything that ``start`` started. May be called at any time, also twice."""
