"""Inside a rank's process: it joins the others, then trains whenever it is asked to, and sleeps in between."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]  # public, though not re-exported for mypy

from launch.bench.backprop.batches import Portions
from launch.bench.backprop.final_messages import print_into
from launch.bench.backprop.job import Job
from launch.bench.backprop.layers import LayerByLayer
from launch.bench.backprop.trainer import Trainer
from launch.bench.protocol import DeviceUse
from pipeline.runtime.allocator import keep_freed_memory
from pipeline.runtime.process import allow_tf32
from pipeline.telemetry.clock import TimeCategory
from pipeline.telemetry.memory import give_back, peak_bytes, reset_peak


@dataclass(frozen=True)
class Share:
    """A rank's answer to a round. ``loss`` is the mean over its images; None where another rank has it."""

    seconds: float
    devices: tuple[DeviceUse, ...]
    bytes_per_step: int
    loss: float | None


Question = tuple[Any, ...]
"""("round", warm-up steps, steps), whose answer is a ``Share``, ("weights",), or ("layers",) where layers are timed."""


def work(job: Job, rank: int, store: Path, portions: Portions, said: str) -> Callable[[Question], Any]:
    """In a rank's process: joins the others. Returns what answers questions.

    Args:
        store: the file by which the ranks meet.
        said: file for what libraries print.
    """
    print_into(said)
    device = job.device(rank)
    keep_freed_memory()
    torch.set_num_threads(job.spec.settings.pipeline.threads)
    if device.type == "cuda":
        allow_tf32(job.spec.settings.pipeline.precision)
        torch.cuda.set_device(device)
    if job.num_ranks > 1:
        _join(job, rank, store)
    here = _trainer(job, rank)
    give_back(device)
    return partial(_answer, here, portions)


def _trainer(job: Job, rank: int) -> Trainer:
    """The rank's trainer. Each way is imported where it is taken: pipelining alone takes seconds and 80 MB."""
    match job.way:
        case "backprop":
            from launch.bench.backprop.alone import Alone  # noqa: PLC0415

            return Alone(job, rank)
        case "dataparallel" | "ddp":
            from launch.bench.backprop.replicas import Distributed, Replicated  # noqa: PLC0415

            return (Distributed if job.way == "ddp" else Replicated)(job, rank)
        case "gpipe" | "1f1b":
            from launch.bench.backprop.pipelines import Pipelined  # noqa: PLC0415

            return Pipelined(job, rank)
        case "layers":
            return LayerByLayer(job, rank)


def _join(job: Job, rank: int, file: Path) -> None:
    timeout = timedelta(seconds=job.spec.settings.pipeline.stall_timeout)
    # All ranks are on this machine, whose own name may have no address that gloo can use.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = FileStore(str(file), job.num_ranks)
    store.set_timeout(timeout)
    backend = "cpu:gloo,cuda:nccl" if job.spec.device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=job.num_ranks, timeout=timeout)


def _answer(here: Trainer, portions: Portions, question: Question) -> Any:
    match question:
        case ("round", int(warm), int(steps)):
            answer: Any = _round(here, portions, warm, steps)
        case ("weights",):
            answer = here.weights()
        case ("layers",):
            assert isinstance(here, LayerByLayer), "asked of a job that times layers"
            answer = here.take_seconds()
        case _:
            raise ValueError(f"no rank knows the question {question}")
    give_back(here.device)
    return answer


def _round(here: Trainer, portions: Portions, warm: int, steps: int) -> Share:
    """Warm-up steps, then measured ones from the moment when all ranks are ready."""
    for device in here.devices():
        reset_peak(device)
    loss = _steps(here, portions, warm)
    _meet(here)
    here.clock.restart()
    begun = time.perf_counter()
    loss = _steps(here, portions, steps)
    seconds = time.perf_counter() - begun
    spent = _spent(here, seconds)
    return Share(
        seconds=seconds,
        devices=tuple(
            DeviceUse(name=name, seconds=spent, peak_bytes=peak_bytes(device))
            for name, device in zip(_names(here), here.devices(), strict=True)
        ),
        bytes_per_step=here.bytes_per_step,
        loss=None if loss is None else float(loss),
    )


def _steps(here: Trainer, portions: Portions, count: int) -> torch.Tensor | None:
    """So many steps to their very end; the last one's loss."""
    loss: torch.Tensor | None = torch.tensor(math.nan)
    for _ in range(count):
        with here.clock.measure(TimeCategory.WAIT_IN):
            portion = portions.take()
        loss = here.step(portion)
    here.busy.finish()
    for device in here.devices():
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return loss


def _meet(here: Trainer) -> None:
    """Waits until every rank is here."""
    if here.job.num_ranks > 1:
        dist.all_reduce(torch.zeros(1))  # on the CPU, so over gloo: NCCL's barrier would only queue a kernel


def _spent(here: Trainer, wall: float) -> dict[str, float]:
    if here.job.way == "dataparallel":
        return {"other": wall}  # copies and kernels of all devices run under one call
    account = here.clock.read()
    spent = {"busy": account.seconds[TimeCategory.BUSY], "wait_in": account.seconds[TimeCategory.WAIT_IN]}
    if here.device.type == "cpu":  # a GPU's host only queues communication: its time is among the rest
        spent["communication"] = account.seconds[TimeCategory.SYNC]
    return {**spent, "other": max(0.0, wall - sum(spent.values()))}


def _names(here: Trainer) -> list[str]:
    if here.job.way == "dataparallel":
        return [f"GPU {index + 1}" for index in range(here.job.num_devices)]
    return [here.job.rank_name(here.rank)]
