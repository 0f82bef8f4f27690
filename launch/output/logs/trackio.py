"""Trackio: a local file for `trackio show`, or a Space where ``TRACKIO_SPACE_ID`` says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from launch.output.logs.base import PROJECT, RunFacts, Sink, by_step
from launch.output.logs.figures import Figure


class Trackio(Sink):
    """A run of the project "localpipe", with the run's name."""

    kind: ClassVar[str] = "trackio"
    package = "trackio"

    def __init__(self, facts: RunFacts) -> None:
        super().__init__(facts)
        import trackio  # noqa: PLC0415 (seconds, and only where it was asked for)

        self._trackio: Any = trackio
        name, config = facts.name, dict(facts.settings)
        trackio.init(project=PROJECT, name=name, config=config, resume="allow", embed=False)

    def write(self, figures: Sequence[Figure]) -> None:
        for step, values in by_step(figures):
            self._trackio.log(values, step=step)

    def picture(self, name: str, file: Path, step: int) -> None:
        self._trackio.log({name: self._trackio.Image(str(file))}, step=step)

    def flush(self) -> None:
        return None  # it writes by itself

    def finish(self, outcome: Mapping[str, float], step: int) -> None:
        self._trackio.log(dict(outcome), step=step)
        self._trackio.finish()
