"""metrics.jsonl: a line for every layer, and one for every stage, at the end of every pass (docs/summary.md)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from launch.output.logs.figures import end_of, figures_of, launching_of
from pipeline.config.run_spec import RunSpec
from pipeline.telemetry.clock import TimeCategory
from pipeline.telemetry.reports import PassReport


def lines_of(spec: RunSpec, report: PassReport) -> Iterator[str]:
    """The lines of a stage's pass. What a layer does not have is left out."""
    where = {
        "kind": report.kind.name.lower(),
        "epoch": report.epoch + 1,
        "step": end_of(spec, report.kind, report.epoch),
        "time": round(time.time(), 3),
        "stage": report.stage + 1,
    }
    for layer in report.layers:
        yield _line({**where, "layer": layer.layer + 1, **figures_of(layer), **layer.vitals})
    account = report.account
    if account is not None:
        seconds = {kind.value: account.seconds[kind] for kind in TimeCategory} | {"other": account.other}
        launching = {name.replace(" ", "_"): value for name, value in launching_of(account).items()}
        yield _line({**where, "wall": account.wall, **seconds, "utilisation": account.utilisation, **launching})


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values) + "\n"
