"""All places that a run's figures go to, as one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.output.logs.base import RunFacts, Sink
from launch.output.logs.figures import Figure
from launch.output.logs.mlflow import MLflow
from launch.output.logs.ray_metrics import RayMetrics
from launch.output.logs.tensorboard import TensorBoard
from launch.output.logs.trackio import Trackio
from launch.output.logs.wandb import WeightsAndBiases
from pipeline.config import settings as settings_module
from pipeline.config.saved import flattened
from pipeline.config.settings import Settings
from pipeline.errors import UserError
from workers.where import where

SINKS: dict[str, type[Sink]] = {
    sink.kind: sink for sink in (TensorBoard, RayMetrics, WeightsAndBiases, MLflow, Trackio)
}
"""Every place by its kind."""


_MATTER = ("preset", "train", "method", "net", "augment", "readout", "data", "baseline", "pipeline")
"""Groups of settings in which runs are compared, those first that are varied most."""


class Logs:
    """Hands everything to each place. One that fails is said once and left out from then on: the run goes on."""

    def __init__(self, facts: RunFacts, warn: Callable[[str], None], kinds: Sequence[str]) -> None:
        self._warn = warn
        self._sinks = [SINKS[kind](facts) for kind in kinds]

    def write(self, figures: Sequence[Figure]) -> None:
        if figures:
            self._each(lambda sink: sink.write(figures))

    def picture(self, name: str, file: Path, step: int) -> None:
        self._each(lambda sink: sink.picture(name, file, step))

    def flush(self) -> None:
        self._each(lambda sink: sink.flush())

    def finish(self, outcome: Mapping[str, float], step: int) -> None:
        self._each(lambda sink: sink.finish(outcome, step))
        self._sinks = []

    def _each(self, do: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                do(sink)
            except Exception as error:  # noqa: BLE001 (each has errors of its own; a run is worth more than its log)
                self._sinks.remove(sink)
                said = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
                self._warn(f"{sink.kind}: nothing more is logged there ({said}). Training goes on.")


def kinds_of(settings: Settings) -> list[str]:
    """Where a run's figures go: to Ray's metrics too where somebody may look at those."""
    pipe = settings.pipeline
    looked_at = pipe.executor == "ray" and (pipe.dashboard or where(settings.pipeline.ray_address).joined)
    return [*settings.log, *([RayMetrics.kind] if looked_at else [])]


def check_logs(settings: Settings) -> None:
    """Raises UserError where a package is missing that a place needs."""
    for kind in settings.log:
        package = SINKS[kind].package
        if package is not None and importlib.util.find_spec(package) is None:
            raise UserError(
                f"`log` {kind}: {package} is not installed. Install it with: pip install 'localpipe[{kind}]'"
            )


def flat(settings: Settings) -> dict[str, str | int | float | bool]:
    """Every setting that may matter to a result, by its name with its group's before it: "train.lr"."""
    saved = settings_module.to_dict(settings)
    return {
        name: value if isinstance(value, (str, int, float, bool)) else str(value)
        for name, value in flattened({name: saved[name] for name in _MATTER})
    }


def outcome_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """What a run came to, for comparing runs."""
    speed = summary.get("speed") or {}
    found = {
        "result/test accuracy": summary.get("test_accuracy"),
        "result/images per second": speed.get("images_per_second"),
        "result/measured speed-up": speed.get("measured_speedup"),
        "result/best epoch": summary.get("best_epoch"),
        "result/seconds": summary.get("seconds", {}).get("total"),
    }
    return {name: float(value) for name, value in found.items() if value is not None}
