"""Ray's metrics: gauges that each node's agent has for Prometheus, and so for Ray's dashboard and Grafana."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from launch.output.logs.base import RunFacts, Sink
from launch.output.logs.figures import RUN, Figure

if TYPE_CHECKING:
    from ray.util.metrics import Gauge

_AGAIN = 2.0  # seconds after which a value is told again
_DESCRIPTION = "localpipe: {what} of a {whose}, as docs/monitoring.md has it"


class RayMetrics(Sink):
    """A gauge for each kind of figure, ``localpipe_stage_utilisation`` and so on, told apart by the tags run, stage,
    layer and device. Ray must be initialised."""

    kind: ClassVar[str] = "ray"

    def __init__(self, facts: RunFacts) -> None:
        super().__init__(facts)
        self._gauges: dict[str, Gauge] = {}
        self._latest: dict[str, Figure] = {}
        self._told = 0.0  # when all were told last

    def write(self, figures: Sequence[Figure]) -> None:
        latest = {figure.tag: figure for figure in figures}  # a gauge has one value
        self._latest |= latest
        # Ray hands a value on once, and what is not handed on is no longer there for whoever asks.
        now = time.monotonic()
        if now - self._told >= _AGAIN:
            latest, self._told = self._latest, now
        for figure in latest.values():
            name, tags = named(figure, self.facts.name)
            if name not in self._gauges:
                from ray.util.metrics import Gauge  # noqa: PLC0415 (only where the run is through Ray)

                whose = name.split("_")[1]
                description = _DESCRIPTION.format(what=figure.what, whose=whose)
                self._gauges[name] = Gauge(name, description=description, tag_keys=tuple(tags))
            self._gauges[name].set(figure.value, tags=tags)

    def picture(self, name: str, file: Path, step: int) -> None:
        return None  # it has no pictures

    def flush(self) -> None:
        return None  # the agent asks by itself

    def finish(self, outcome: Mapping[str, float], step: int) -> None:
        self._gauges, self._latest = {}, {}


def named(figure: Figure, run: str) -> tuple[str, dict[str, str]]:
    """A figure's gauge and tags."""
    kind, _, number = figure.whose.partition(" ")
    tags = {"run": run}
    if kind != RUN:
        tags[kind] = number
    if figure.device:
        tags["device"] = figure.device
    what = re.sub(r"\W+", "_", figure.what)
    return f"localpipe_{kind}_{what}", tags
