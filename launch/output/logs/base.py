"""Where a run's figures are kept: one interface, a module for each place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from launch.output.logs.figures import Charts, Figure

PROJECT = "localpipe"
"""What places call all runs together that have projects or experiments."""

AXIS = "training step"
"""The name of the axis that all figures share, where a place wants one."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a place is told of a run before any figure.

    Attributes:
        folder: the run folder.
        name: the run's: its folder's, of a run in a sweep with the sweep's and a slash before it.
        settings: every setting by its flag's name, as text, number or truth value.
        config: config.json's content.
        charts: what is worth a chart of the run.
        resumed: whether the run goes on from a checkpoint.
    """

    folder: Path
    name: str
    settings: Mapping[str, str | int | float | bool]
    config: Mapping[str, Any]
    charts: Charts
    resumed: bool


class Sink(ABC):
    """Keeps the figures of one run in one place. Errors of the place's own kind come out as they are."""

    kind: ClassVar[str]
    """Its name for people."""
    package: ClassVar[str | None] = None
    """What has to be installed for it, where that is not here in any case."""

    def __init__(self, facts: RunFacts) -> None:
        self.facts = facts

    @abstractmethod
    def write(self, figures: Sequence[Figure]) -> None:
        """Takes some figures. Those of one name come in the order of their steps."""

    @abstractmethod
    def picture(self, name: str, file: Path, step: int) -> None:
        """Takes a picture, a PNG, drawn when the run had done so many steps."""

    @abstractmethod
    def flush(self) -> None:
        """Has what was written so far be there for others."""

    @abstractmethod
    def finish(self, outcome: Mapping[str, float], step: int) -> None:
        """The run is over, after so many steps and with these figures. Nothing more is written."""


def by_step(figures: Sequence[Figure]) -> list[tuple[int, dict[str, float]]]:
    """The values of every step by their names, for places that take all of a step at once."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for figure in figures:
        found[figure.step][figure.tag] = figure.value
    return sorted(found.items())
