"""Weights & Biases. ``WANDB_MODE=offline`` keeps everything on this machine, in the run folder, for `wandb sync`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from launch.output.logs.base import AXIS, PROJECT, RunFacts, Sink, by_step
from launch.output.logs.figures import Figure


class WeightsAndBiases(Sink):
    """A run of the project "localpipe", with the run's name."""

    kind: ClassVar[str] = "wandb"
    package = "wandb"

    def __init__(self, facts: RunFacts) -> None:
        super().__init__(facts)
        import wandb  # noqa: PLC0415 (seconds, and only where it was asked for)

        self._wandb: Any = wandb
        self._run = wandb.init(
            project=PROJECT,
            name=facts.name,
            id=facts.name.replace("/", "-"),  # which an id cannot have
            dir=str(facts.folder),
            config=dict(facts.settings),
            resume="allow",
        )
        self._run.define_metric("*", step_metric=AXIS)

    def write(self, figures: Sequence[Figure]) -> None:
        for step, values in by_step(figures):
            self._run.log({**values, AXIS: step})

    def picture(self, name: str, file: Path, step: int) -> None:
        self._run.log({name: self._wandb.Image(str(file)), AXIS: step})

    def flush(self) -> None:
        return None  # it writes by itself

    def finish(self, outcome: Mapping[str, float], step: int) -> None:
        self._run.summary.update(dict(outcome))
        self._run.finish()
