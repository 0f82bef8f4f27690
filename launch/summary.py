"""Every figure that a run prints, under stable names (launch/summary.md), from its result."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from launch.data import left_out
from pipeline.data.loader import Dataset
from pipeline.history import RunResult
from pipeline.messages import Kind
from pipeline.metrics import LayerReport, Spent
from pipeline.resolve import num_cores
from pipeline.rules import METHODS
from pipeline.schedule import fill, ideal_speedup
from pipeline.spec import RunSpec

_SKIPPED = 1000  # files that the summary names; skipped.csv beside it has all


def summarise(
    spec: RunSpec, dataset: Dataset, result: RunResult, *, command: str, started: str, seconds: float
) -> dict[str, Any]:
    """The summary of a finished, interrupted or failed run. Figures that it did not come to are None."""
    settings = spec.settings
    epochs = result.history.epochs(Kind.VALIDATE)
    best = result.best_epoch
    validated = result.history.layers(Kind.VALIDATE, best) if best is not None else None
    tested = result.history.layers(Kind.TEST, 0)
    trained = result.history.layers(Kind.TRAIN, epochs[-1]) if epochs else None
    return {
        "format": 1,
        "status": result.status,
        "command": command,
        "started": started,
        "preset": settings.preset,
        "method": METHODS.dump(settings.method),
        "net": spec.net.describe(),
        "data": {
            "name": spec.data_name,
            "content_hash": spec.content_hash,
            "train": dataset.count("train"),
            "validate": dataset.count("validate"),
            "test": dataset.count("test"),
            "skipped": [asdict(one) for one in left_out(dataset)[:_SKIPPED]],
            "skipped_count": dataset.index.skipped + len(dataset.skipped),
        },
        "seed": settings.train.seed,
        "precision": settings.pipeline.precision,
        "threads": settings.pipeline.threads,
        "executor": settings.pipeline.executor,
        "stages": spec.num_stages,
        "epochs_finished": len(epochs),
        "best_epoch": None if best is None else best + 1,
        "test_accuracy": tested[-1].accuracy if tested else None,
        "test_top_k": tested[-1].top_k if tested else None,
        "top_k": min(spec.top_k, len(spec.classes)),
        "layers": [
            _layer(
                index,
                tested[index] if tested else None,
                validated[index] if validated else None,
                trained[index] if trained else None,
            )
            for index in range(spec.num_layers)
        ],
        "speed": _speed(spec, dataset, result, len(epochs)),
        "seconds": {"total": seconds, **result.seconds},
        "machine": machine(),
    }


def _layer(
    index: int, tested: LayerReport | None, validated: LayerReport | None, trained: LayerReport | None
) -> dict[str, Any]:
    return {
        "layer": index + 1,
        "test_accuracy": tested.accuracy if tested else None,
        "test_top_k": tested.top_k if tested else None,
        "test_direct_accuracy": tested.direct_accuracy if tested else None,
        "test_fisher": tested.fisher if tested else None,
        "validation_loss": validated.loss if validated else None,
        "validation_fisher": validated.fisher if validated else None,
        "validation_accuracy": validated.accuracy if validated else None,
        "version_skew": trained.version_skew if trained else None,
    }


def _speed(spec: RunSpec, dataset: Dataset, result: RunResult, num_epochs: int) -> dict[str, Any] | None:
    """Speed of the layers' training, validation included: from its first batch to its last, start-up apart."""
    accounts = result.history.accounts(Kind.TRAIN, Kind.VALIDATE)
    if not num_epochs or len(accounts) < spec.num_stages:
        return None
    batch = spec.settings.train.batch_size
    train_steps = dataset.num_batches("train", batch) * num_epochs
    steps = train_steps + dataset.num_batches("validate", batch) * num_epochs
    stages = [accounts[stage] for stage in range(spec.num_stages)]
    busy = [stage.seconds[Spent.BUSY] for stage in stages]
    begun = [result.history.started_at[stage] for stage in range(spec.num_stages)]
    wall = max(start + stage.wall for start, stage in zip(begun, stages, strict=True)) - min(begun)
    return {
        "images_per_second": train_steps * batch / wall,
        "measured_speedup": sum(busy) / wall,
        "ideal_speedup": ideal_speedup(busy, steps),
        "fill": fill(steps, spec.num_stages),
        "wall_seconds": wall,
        "cores_shared": spec.device == "cpu" and spec.num_stages * spec.settings.pipeline.threads > num_cores(),
        "stages": [
            {
                "stage": number + 1,
                "layers": [layer + 1 for layer in spec.stages[number]],
                "device": result.devices[number],
                "utilisation": account.utilisation,
                "wall": account.wall,
                **{kind.value: account.seconds[kind] for kind in Spent},
                "other": account.other,
            }
            for number, account in enumerate(stages)
        ],
    }


def machine() -> dict[str, Any]:
    """What the run ran on, and with which versions."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cores": num_cores(),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("localpipe", "torch", "ray")},
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")
    except OSError:  # not Linux
        return platform.processor() or "unknown"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
