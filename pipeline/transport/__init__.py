"""How messages travel between neighbours: between threads, through shared memory, over torch.distributed."""

from __future__ import annotations

from typing import Literal

Transport = Literal["auto", "gloo", "shm", "nccl"]
"""Which of them. auto: NCCL between GPUs, shared memory between CPUs of one machine, gloo otherwise."""
