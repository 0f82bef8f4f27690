"""How long each layer takes on this machine's devices, and what it holds.

Two stages on one CPU share memory and clock: layers are timed on one device alone, and on all at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pipeline.config.build import open_folder
from pipeline.config.run_spec import RunSpec
from pipeline.errors import RunError, UserError
from pipeline.planning.costs import LayerCost, Profile, Sample
from pipeline.planning.workbench import COPIES, Workbench
from pipeline.spawn import Child, ChildDiedError, ChildFailedError, ask_all

SECONDS = 4.0
"""How long layers are timed, alone and again all at once; longer where four rounds take longer."""

_BATCHES = 4  # read to time the feeder
_OTHERS = 0.06  # cores that Ray's processes and the command take beside CPU stages: 1.0 to 1.3 s in 20 s were seen
_CROWDED = 0.94  # four stages on two cores gave 623 images/s, and 13 % more were to be expected of their layers' times
_TIMEOUT = 600.0  # seconds until processes that do not answer are given up


def profile(spec: RunSpec, device: torch.device, *, seconds: float = SECONDS) -> Sample:
    """Times every layer of a run on a device, in this thread."""
    return Workbench(spec, device).run(seconds)


def time_feed(spec: RunSpec) -> float:
    """Seconds of a feeder for a batch of images that it has seen before, as in every epoch but the first."""
    dataset = open_folder(spec.settings, Path(spec.data_folder))
    seconds = []
    for _ in range(2):
        batches = dataset.batches("train", epoch=0, batch_size=spec.settings.train.batch_size)
        begun = time.perf_counter()
        read = sum(1 for _ in islice(batches, _BATCHES))
        seconds.append((time.perf_counter() - begun) / read)
    return seconds[-1]


# ---------------------------------------------------------------------------------------------------------------------
# In processes of their own, one per device that is to be busy: what they leave behind ends with them


def profile_here(spec: RunSpec, num_busy: int, *, seconds: float = SECONDS) -> Profile:
    """Times the layers on this machine: on one device alone, then on ``num_busy`` at once.

    Raises:
        RunError: a process that timed them failed or died, as where a batch does not fit in memory.
    """
    begun = time.perf_counter()
    with ExitStack() as stack:
        workers = [stack.enter_context(Child("timing the layers", _workbench, spec)) for _ in range(num_busy)]
        _ask(workers, Workbench.warm, spec)
        feed_seconds, link, alone = _ask(workers[:1], partial(_first_alone, seconds=seconds), spec)[0]
        samples = [alone]
        if num_busy > 1:
            samples = _ask(workers, partial(Workbench.run, seconds=seconds), spec)
    return replace(
        joined(samples, spec),
        alone=alone.costs,
        feed_seconds=feed_seconds,
        link_bandwidth=link,
        took=time.perf_counter() - begun,
    )


def joined(samples: Sequence[Sample], spec: RunSpec) -> Profile:
    """A profile of what several devices measured at once: medians over them."""
    busy = tuple(
        LayerCost(
            **{
                name: median(getattr(cost, name) for cost in costs)
                for name in ("enter", "forward", "loss", "backward", "update")
            },
            **{name: getattr(costs[0], name) for name in ("bytes_out", *_SIZES)},
        )
        for costs in zip(*(sample.costs for sample in samples), strict=True)
    )
    images = torch.empty(spec.settings.train.batch_size, *spec.shape, dtype=torch.uint8, device="meta")
    return Profile(
        alone=busy,
        busy=busy,
        num_busy=len(samples),
        jitter=median(sample.jitter for sample in samples),
        feed_seconds=0.0,
        feed_bytes=images.nbytes + 2 * 8 * len(images),
        copy_bandwidth=median(sample.copy_bandwidth for sample in samples),
        others=_OTHERS if spec.device == "cpu" else 0.0,
        crowded=_CROWDED if spec.device == "cpu" else 1.0,
    )


_SIZES = ("weight_bytes", "optimizer_bytes", "activation_bytes")


_Task = Callable[[Workbench], Any]


def _workbench(spec: RunSpec) -> Callable[[_Task], Any]:
    """In a process of its own: does with its workbench whatever it is asked to."""
    bench = Workbench(spec, spec.stage_device(0))
    return lambda task: task(bench)


def _first_alone(bench: Workbench, seconds: float) -> tuple[float, float | None, Sample]:
    """What one process measures while the others sleep: seconds of a feeder, bytes per second of a link, the layers."""
    return time_feed(bench.spec), link_bandwidth(bench.spec), bench.run(seconds)


def _ask(workers: Sequence[Child[_Task, Any]], task: _Task, spec: RunSpec) -> list[Any]:
    """What the task gives in every process. Raises RunError or UserError for what a person is to know."""
    try:
        return ask_all(workers, task, timeout=_TIMEOUT)
    except TimeoutError:
        raise RunError(
            f"timing the layers took longer than {_TIMEOUT:g} s. Give a smaller `batch_size` or net."
        ) from None
    except ChildDiedError as death:
        raise RunError(
            f"a process that timed the layers died, as it does where memory ends. `batch_size` "
            f"{spec.settings.train.batch_size} may be too large for this machine: give a smaller one."
        ) from death
    except ChildFailedError as failure:
        if isinstance(failure.error, RunError | UserError):
            raise failure.error from None
        raise


def link_bandwidth(spec: RunSpec) -> float | None:
    """Bytes per second from one GPU of this machine to another; None where there are not two."""
    if spec.device != "cuda" or torch.cuda.device_count() < 2:
        return None
    source = torch.zeros(64 << 20, dtype=torch.uint8, device="cuda:0")
    target = torch.zeros_like(source, device="cuda:1")
    seconds = []
    for _ in range(COPIES):
        torch.cuda.synchronize(0)
        begun = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize(0)
        torch.cuda.synchronize(1)
        seconds.append(time.perf_counter() - begun)
    return source.nbytes / median(seconds)
