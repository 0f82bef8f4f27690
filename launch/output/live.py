"""Where a run is now: for the live table of its own terminal, and in its folder for every other one (`launch top`)."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from launch.output.console import printable
from launch.output.logs.figures import LAUNCHING, SHARES, launching_of
from launch.output.logs.meters import Meter
from launch.output.whole_file import write_whole
from pipeline import plain_json
from pipeline.config.run_spec import RunSpec
from pipeline.registry import STRICT
from pipeline.telemetry.reports import Status

NOW = "now.json"
"""Its name in a run folder. Written anew some times a second, whole or not at all."""

_COLUMNS = (
    "stage",
    "layers",
    "device",
    "images/s",
    "utilisation",
    "wait-in",
    "wait-out",
    "sync",
    "issue/kernel ms",
    "queue",
    "MiB",
    "loss",
)
_BY_WORTH = (
    "stage",
    "layers",
    "images/s",
    "utilisation",
    "wait-in",
    "wait-out",
    "sync",
    "queue",
    "issue/kernel ms",
    "loss",
    "device",
    "MiB",
)
_LEFT = ("device", "loss")
_ENDED = 3600.0  # seconds without news
_FRAME = 3  # columns of a terminal that a column of the table takes beside its content


@dataclass(frozen=True, kw_only=True)
class StageNow:
    """A stage over the last seconds. Shares lie between 0 and 1; those beside ``utilisation`` are of its other time.

    Attributes:
        stage: from 1.
        layers: "3" or "1–2".
        memory: bytes.
        losses: the latest of each layer; None before the first.
        launching: "issue ms" and "kernel ms"; none on a CPU, and until a step has told.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    stage: int
    layers: str
    device: str
    images_per_second: float
    utilisation: float
    shares: dict[str, float]
    queue: int
    memory: int
    losses: list[float | None]
    launching: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Now:
    """A run at a moment.

    Attributes:
        title: "cff-vit on digits".
        at: when, in seconds since 1970.
        step, steps: training steps that the first stage has done, and those of the whole run.
        limit: what holds the run back, in words; "" where that cannot be told yet.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    title: str
    at: float
    step: int
    steps: int
    queue_depth: int
    limit: str
    stages: list[StageNow]


_ADAPTER = TypeAdapter(Now)


def stages_now(spec: RunSpec, statuses: Sequence[Status], meters: Sequence[Meter]) -> list[StageNow]:
    """Every stage of a run as it is now."""
    return [
        StageNow(
            stage=status.stage + 1,
            layers=numbers(spec.stages[status.stage]),
            device=status.device,
            images_per_second=meter.images_per_second,
            utilisation=meter.utilisation,
            shares=meter.shares,
            queue=status.waiting,
            memory=status.memory,
            losses=[None if math.isnan(loss) else loss for loss in status.losses],
            launching=launching_of(meter.account) if meter.account is not None else {},
        )
        for status, meter in zip(statuses, meters, strict=True)
    ]


def numbers(layers: range) -> str:
    """Layers, counted from 1: "3" or "1–2"."""
    return f"{layers[0] + 1}" if len(layers) == 1 else f"{layers[0] + 1}–{layers[-1] + 1}"


def dumps(now: Now) -> bytes:
    """It as JSON."""
    return _ADAPTER.dump_json(now)


def loads(said: bytes) -> Now | None:
    """What ``dumps`` has made of it; None where it is nothing of that kind."""
    try:
        return _ADAPTER.validate_json(said)
    except ValidationError:
        return None


def outdated(now: Now) -> bool:
    """Whether it is so old that its run must have ended without a word."""
    return time.time() - now.at > _ENDED


def write(run: Path, now: Now) -> None:
    """Writes it into a run folder. Raises OSError where that cannot be."""
    write_whole(run / NOW, dumps(now))


def read(run: Path) -> Now | None:
    """What a run folder has of it; None where there is nothing, or nothing that can be read."""
    try:
        return _ADAPTER.validate_python(plain_json.read(run / NOW))
    except (OSError, ValueError, ValidationError):
        return None


def picture(now: Now, width: int) -> RenderableType:
    """A row for each stage, and what limits below, for a terminal of so many columns: what has no room is left out."""
    rows = [_cells(stage, now.queue_depth) for stage in now.stages]
    empty = {
        "sync": not any(stage.shares.get("sync") for stage in now.stages),
        "issue/kernel ms": not any(stage.launching for stage in now.stages),
    }
    wanted = [heading for heading in _COLUMNS if not empty.get(heading)]
    shown = _that_fit(wanted, rows, width)
    table = Table(title=printable(now.title), title_justify="left")
    for heading in shown:
        table.add_column(heading, justify="left" if heading in _LEFT else "right", no_wrap=heading != "loss")
    for cells in rows:
        table.add_row(*(Text(printable(cells[heading])) for heading in shown))
    return Group(table, *([Text(printable(now.limit))] if now.limit else []))


def _cells(stage: StageNow, queue_depth: int) -> dict[str, str]:
    return {
        "stage": str(stage.stage),
        "layers": stage.layers,
        "device": stage.device,
        "images/s": f"{stage.images_per_second:,.0f}",
        "utilisation": f"{stage.utilisation:.0%}",
        **{name.replace("_", "-"): f"{stage.shares.get(name, 0.0):.0%}" for name in SHARES},
        "issue/kernel ms": " / ".join(f"{stage.launching[name]:.2f}" for name in LAUNCHING if name in stage.launching),
        "queue": f"{stage.queue}/{queue_depth}",
        "MiB": f"{stage.memory / 2**20:,.0f}",
        "loss": "  ".join(f"{loss:.3f}" for loss in stage.losses if loss is not None),
    }


def _that_fit(wanted: Sequence[str], rows: Sequence[dict[str, str]], width: int) -> list[str]:
    """Columns of these, in their order, that a terminal has room for; those that matter most come first."""
    left, fit = width - 1, set[str]()
    for heading in sorted(wanted, key=_BY_WORTH.index):
        needed = _FRAME + max(len(heading), *(len(cells[heading]) for cells in rows), 0)
        if needed <= left:
            left -= needed
            fit.add(heading)
    return [heading for heading in wanted if heading in fit]
