"""Digests of what runs have learned, to see that a change of the code leaves every number as it was."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

RECORDED = Path(__file__).parent / "recorded_bits.json"
"""Digests by machine and command. Written by runs of the tests with LOCALPIPE_RECORD_BITS=1, for a change that means
to change numbers; CHANGELOG.md says which."""


def digest(run: Path) -> str:
    """Of the kept weights and of the last ones with their optimizers, whatever the tensors are called."""
    tensors = [*load_file(run / "model.safetensors").values(), *load_file(run / "last.safetensors").values()]
    each = sorted(
        hashlib.sha256(
            repr((t.dtype, tuple(t.shape))).encode() + t.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        ).digest()
        for t in tensors
    )
    return hashlib.sha256(b"".join(each)).hexdigest()[:32]


def machine() -> str:
    """What the bits depend on beside the code: the same program rounds otherwise on another processor."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {names[0] if names else 'unknown'}"


def assert_recorded(command: str, run: Path) -> None:
    """The run's digest is the one on record for this machine; skips where there is none."""
    known: dict[str, dict[str, str]] = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    here = known.setdefault(machine(), {})
    found = digest(run)
    if os.environ.get("LOCALPIPE_RECORD_BITS"):
        here[command] = found
        RECORDED.write_text(json.dumps(known, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        return
    if command not in here:
        pytest.skip(f"no digest of `{command}` is on record for {machine()}")
    assert found == here[command], f"`{command}` learns other numbers than before"
