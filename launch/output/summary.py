"""Every figure that a run prints, under stable names (docs/summary.md), from its result."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from launch.output.data_lines import left_out
from launch.output.versions import versions
from pipeline.config.devices import num_cores
from pipeline.config.run_spec import RunSpec
from pipeline.data.loader import Dataset
from pipeline.kind import Kind
from pipeline.methods import METHODS
from pipeline.planning.ideal import ideal_speedup
from pipeline.planning.limits import StageLoad, Verdict, verdict
from pipeline.runtime.history import RunResult
from pipeline.runtime.states import Course
from pipeline.telemetry.clock import TimeBreakdown, TimeCategory
from pipeline.telemetry.reports import LayerReport

if TYPE_CHECKING:
    from workers.hosts import Host  # it imports Ray, which a run without it does not need

_FORMAT = 2
_BEST = {
    "loss": "lowest validation loss of layer {last}",
    "accuracy": "highest validation accuracy of layer {last}{by}",
    "last": "the last one",
}
"""In words, which epoch's weights are kept for each ``--keep``."""
_SKIPPED = 1000  # files that the summary names; skipped.csv beside it has all


def summarise(
    spec: RunSpec,
    dataset: Dataset,
    result: RunResult,
    course: Course,
    *,
    command: str,
    began: float,
    reading: float | None = None,
    warnings: Sequence[str] = (),
    hosts: Sequence[Host] = (),
) -> dict[str, Any]:
    """The summary of a finished, interrupted or failed run. Figures that it did not come to are None.

    Args:
        course: the states that the run was in.
        began: when the command was typed, in seconds since 1970.
        reading: the share of time in which the busiest feeder read, where that is known.
        warnings: what was said of the machines and of what limits, while the run went on.
        hosts: machines of the cluster that the run has joined, if it has.
    """
    settings = spec.settings
    epochs = result.history.epochs(Kind.VALIDATE)
    best = result.best_epoch
    validated = result.history.layers(Kind.VALIDATE, best) if best is not None else None
    tested = result.history.layers(Kind.TEST, 0)
    trained = result.history.layers(Kind.TRAIN, epochs[-1]) if epochs else None
    return {
        "format": _FORMAT,
        "status": result.status,
        "command": command,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(began)),
        "preset": settings.preset,
        "method": METHODS.dump(settings.method),
        "net": spec.net.describe(),
        "data": {
            "name": spec.data_name,
            "content_hash": spec.content_hash,
            "train": dataset.count("train"),
            "validate": dataset.count("validate"),
            "test": dataset.count("test"),
            "train_fraction": settings.data.train_fraction,
            "label_noise": settings.data.label_noise,
            "images_on": "device" if result.keeps_images else "host",
            "images_mib": spec.image_bytes / 2**20,
            "skipped": [asdict(one) for one in left_out(dataset)[:_SKIPPED]],
            "skipped_count": dataset.index.skipped + len(dataset.skipped),
        },
        "seed": settings.train.seed,
        "precision": settings.pipeline.precision,
        "threads": settings.pipeline.threads,
        "executor": settings.pipeline.executor,
        "stages": spec.num_stages,
        "queue_depth": settings.pipeline.depth,
        "epochs_finished": len(epochs),
        "best_epoch": None if best is None else best + 1,
        "best_by": best_by(spec),
        "selected_on": settings.selected_on,
        "test_accuracy": tested[-1].accuracy if tested else None,
        "test_direct_accuracy": tested[-1].direct_accuracy if tested else None,
        "test_top_k": tested[-1].top_k if tested else None,
        "top_k": min(spec.top_k, len(spec.classes)),
        "layers": [
            _layer(
                index,
                tested[index] if tested else None,
                validated[index] if validated else None,
                trained[index] if trained else None,
                _head_epoch(result, index, spec.epochs),
            )
            for index in range(spec.num_layers)
        ],
        "speed": _speed(spec, dataset, result, reading, joined=bool(hosts)),
        "warnings": list(warnings),
        "seconds": {"total": time.time() - began, "start_up": _start_up(result, began), **result.seconds},
        "restarts": course.restarts,
        "states": course.seconds(),
        "machine": machine(),
        "hosts": [
            {
                "name": host.name,
                "address": host.address,
                "cores": host.cores,
                "gpus": host.gpus,
                "memory_gib": host.memory_gib,
                "stages": [at + 1 for at, device in enumerate(result.devices) if device.split()[0] == host.address],
            }
            for host in hosts
        ],
    }


def _head_epoch(result: RunResult, index: int, epochs: int) -> int | None:
    """The epoch, from 1, whose readout is kept; None where they are not judged."""
    losses = {
        epoch - epochs + 1: loss
        for epoch in result.history.epochs(Kind.JUDGE)
        if (loss := (result.history.layers(Kind.JUDGE, epoch) or [])[index].readout_loss) is not None
    }
    return min(losses, key=losses.__getitem__, default=None)


def _layer(
    index: int,
    tested: LayerReport | None,
    validated: LayerReport | None,
    trained: LayerReport | None,
    readout_epoch: int | None,
) -> dict[str, Any]:
    return {
        "layer": index + 1,
        "test_accuracy": tested.accuracy if tested and tested.has_readout else None,
        "test_top_k": tested.top_k if tested else None,
        "test_direct_accuracy": tested.direct_accuracy if tested else None,
        "test_fisher": tested.fisher if tested else None,
        "validation_loss": validated.loss if validated and math.isfinite(validated.loss) else None,
        "validation_fisher": validated.fisher if validated else None,
        "validation_accuracy": validated.accuracy if validated else None,
        "version_skew": trained.version_skew if trained else None,
        "readout_epoch": readout_epoch,
    }


def _speed(
    spec: RunSpec, dataset: Dataset, result: RunResult, reading: float | None, *, joined: bool
) -> dict[str, Any] | None:
    """Speed of the layers' training, validation included: from its first batch to its last, start-up apart.

    Of a run that went on from a checkpoint it is that of the part behind it.
    """
    history = result.history
    accounts = history.accounts(Kind.TRAIN, Kind.VALIDATE)
    epochs = [epoch for epoch in history.epochs(Kind.VALIDATE) if history.accounts(Kind.TRAIN, epochs=(epoch,))]
    if not epochs or len(accounts) < spec.num_stages:
        return None
    images = dataset.images_per_pass("train", spec.settings.train.batch_size) * len(epochs)
    images -= history.done_before * spec.settings.train.batch_size
    stages = [accounts[stage] for stage in range(spec.num_stages)]
    busy = [stage.seconds[TimeCategory.BUSY] for stage in stages]
    begun = [result.history.started_at[stage] for stage in range(spec.num_stages)]
    ended = [begin + stage.wall for begin, stage in zip(begun, stages, strict=True)]
    wall = max(ended) - min(begun)
    slowest = busy.index(max(busy))
    # Others are at work before the slowest stage has its first batch, and after its last one.
    fill_seconds = (begun[slowest] - min(begun)) + (max(ended) - ended[slowest])
    limit = limit_of(spec, stages, history.layer_seconds(), reading, joined=joined)
    return {
        "images_per_second": images / wall,
        "measured_speedup": sum(busy) / wall,
        "ideal_speedup": ideal_speedup(_phase_seconds(spec, result), fill_seconds),
        "fill_seconds": fill_seconds,
        "wall_seconds": wall,
        "limit": str(limit),
        "input_headroom": limit.headroom,
        "cores_shared": not joined and shares_cores(spec),
        "stages": [
            {
                "stage": number + 1,
                "layers": [layer + 1 for layer in spec.stages[number]],
                "device": result.devices[number],
                "utilisation": account.utilisation,
                "wall": account.wall,
                **{kind.value: account.seconds[kind] for kind in TimeCategory},
                "other": account.other,
                "issue_ms": account.launching.issue_ms,
                "kernel_ms": account.launching.kernel_ms,
            }
            for number, account in enumerate(stages)
        ],
    }


def limit_of(
    spec: RunSpec,
    accounts: Sequence[TimeBreakdown],
    seconds: Mapping[int, float] | None,
    reading: float | None = None,
    *,
    joined: bool,
) -> Verdict:
    """What holds a run back.

    Args:
        accounts: of every stage, over the same stretch of the run.
        seconds: computing time of every layer over some steps, where it is known.
        reading: as of ``pipeline.planning.limits.verdict``.
        joined: whether it is on a cluster that it has joined, whose Ray gives a core to one stage alone.
    """
    loads = [
        StageLoad(
            layers=layers,
            utilisation=account.utilisation,
            wait_in=account.share(TimeCategory.WAIT_IN),
            sync=account.share(TimeCategory.SYNC),
            launching=account.launching,
        )
        for layers, account in zip(spec.stages, accounts, strict=True)
    ]
    cores = num_cores() if not joined and shares_cores(spec) else None
    feeders = spec.settings.pipeline.feeders
    return verdict(loads, seconds, cores=cores, feeders=feeders, reading=reading, graphs=spec.graphs)


def shares_cores(spec: RunSpec) -> bool:
    """Whether CPU stages outnumber this machine's cores."""
    return spec.device == "cpu" and spec.num_stages * spec.settings.pipeline.threads > num_cores()


def _phase_seconds(spec: RunSpec, result: RunResult) -> list[list[float]]:
    """Each stage's computing time in every phase that was begun: a phase waits for the one before."""
    found = []
    for phase in spec.phases:
        accounts = result.history.accounts(Kind.TRAIN, Kind.VALIDATE, epochs=phase.epochs)
        found.append([account.seconds[TimeCategory.BUSY] for _, account in sorted(accounts.items())])
    return [seconds for seconds in found if seconds]


def best_by(spec: RunSpec) -> str:
    """By what the kept epoch is the best (``--keep``), in words."""
    readout = spec.settings.readout
    return _BEST[spec.settings.train.keep].format(
        last=spec.num_layers, by="'s readout" if readout.mode == "online" else ""
    )


def _start_up(result: RunResult, began: float) -> float | None:
    """Seconds from the command to the first stage's first batch."""
    first = result.history.started_at.get(0)
    return None if first is None else first - began


def machine() -> dict[str, Any]:
    """What the run ran on, and with which versions."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cores": num_cores(),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.machine()}",
        **versions(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")
    except OSError:  # not Linux
        return platform.processor() or "unknown"
