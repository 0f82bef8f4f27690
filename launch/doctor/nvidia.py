"""What nvidia-smi says of a machine's GPUs and of the links between them."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

_FIELDS = ("index", "name", "driver_version", "memory.total", "memory.used")
_SECONDS = 20.0  # a driver that hangs answers nothing
_STYLED = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, kw_only=True)
class DriverGpu:
    """A GPU as the driver sees it, which may be one that PyTorch cannot use.

    Attributes:
        memory, used: MiB; None where the driver does not say ("[N/A]").
    """

    index: int
    name: str
    driver: str
    memory: int | None
    used: int | None


def ask(*arguments: str) -> str | None:
    """What nvidia-smi prints; None where there is none, or where it fails or does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def gpus() -> list[DriverGpu]:
    """The machine's GPUs by its driver; none where there is no nvidia-smi."""
    return parse_gpus(ask(f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits") or "")


def parse_gpus(text: str) -> list[DriverGpu]:
    """Lines of ``--query-gpu=index,name,driver_version,memory.total,memory.used --format=csv,noheader,nounits``."""
    found = []
    for line in text.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) != len(_FIELDS) or not values[0].isdecimal():
            continue  # a message such as "No devices were found"
        index, name, driver, memory, used = values
        found.append(DriverGpu(index=int(index), name=name, driver=driver, memory=_number(memory), used=_number(used)))
    return found


def topology() -> str | None:
    """The table of ``nvidia-smi topo -m`` without styles; None where there is none."""
    said = ask("topo", "-m")
    return None if said is None else _STYLED.sub("", said)


def parse_links(topology: str) -> dict[tuple[int, int], str]:
    """The link of each pair of GPUs by their numbers, the smaller first: "NV18", "PIX", "PHB", "NODE", "SYS".

    Args:
        topology: the table of ``nvidia-smi topo -m``.
    """
    rows = [line.split() for line in _STYLED.sub("", topology).splitlines()]
    heading = next((row for row in rows if row and row[0] == "GPU0" and "X" not in row), None)
    if heading is None:
        return {}
    columns = [number for name in heading if (number := _gpu(name)) is not None]
    links = {}
    for row in rows:
        own = _gpu(row[0]) if len(row) > len(columns) and "X" in row else None
        if own is None:
            continue
        for other, link in zip(columns, row[1:], strict=False):  # links to network cards, and CPUs, stand behind them
            if own < other:
                links[own, other] = link
    return links


def _gpu(name: str) -> int | None:
    found = re.fullmatch(r"GPU(\d+)", name)
    return int(found[1]) if found else None


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None
