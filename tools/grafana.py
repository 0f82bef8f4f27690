"""Writes docker/monitoring/localpipe.json, the Grafana dashboard of a run: `python tools/grafana.py`.

Panels have a query each, of the gauges that ``launch/output/logs/ray_metrics.py`` sets; Ray puts ``ray_`` before their
names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent.parent / "docker" / "monitoring" / "localpipe.json"
_WIDTH, _HEIGHT, _ACROSS = 8, 8, 3
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def query(kind: str, what: str, legend: str) -> dict[str, str]:
    """A line for each stage, or layer, of the chosen runs."""
    return {"expr": f'ray_localpipe_{kind}_{what}{{run=~"$run"}}', "legendFormat": legend}


_STAGE, _LAYER, _RUN = "{{run}} stage {{stage}}", "{{run}} layer {{layer}}", "{{run}}"

SHARES = ("utilisation", "wait_in", "wait_out", "sync", "copy", "other")

ROWS: dict[str, list[tuple[str, str, list[dict[str, str]], bool]]] = {
    "Stages": [
        ("Utilisation", "percentunit", [query("stage", "utilisation", _STAGE)], False),
        ("Images per second", "none", [query("stage", "images_per_second", _STAGE)], False),
        ("Messages in the queue", "none", [query("stage", "queue", _STAGE)], False),
        ("Memory", "mbytes", [query("stage", "memory_mib", _STAGE)], False),
        ("Step, median", "ms", [query("stage", "step_ms_median", _STAGE)], False),
        ("Step, 99th percentile", "ms", [query("stage", "step_ms_99th_percentile", _STAGE)], False),
    ],
    "Where the time goes": [
        (
            "Stage $stage",
            "percentunit",
            [
                {
                    "expr": f'ray_localpipe_stage_{share}{{run=~"$run",stage="$stage"}}',
                    "legendFormat": f"{{{{run}}}} {share.replace('_', '-')}",
                }
                for share in SHARES
            ],
            True,
        )
    ],
    "Whole run": [
        ("Images per second", "none", [query("run", "images_per_second", _RUN)], False),
        (
            "Speed-up",
            "none",
            [
                query("run", "measured_speed_up", f"{_RUN}, measured"),
                query("run", "ideal_speed_up", f"{_RUN}, ideal"),
            ],
            False,
        ),
        ("Seconds of an epoch", "s", [query("run", "epoch_seconds", _RUN)], False),
    ],
    "Layers": [
        ("Training loss", "none", [query("layer", "train_loss", _LAYER)], False),
        ("Validation loss", "none", [query("layer", "validate_loss", _LAYER)], False),
        ("Validation accuracy", "percentunit", [query("layer", "validate_accuracy", _LAYER)], False),
        ("Norm of the last gradient", "none", [query("layer", "train_gradient_norm", _LAYER)], False),
        ("Norm of the weights", "none", [query("layer", "train_weight_norm", _LAYER)], False),
        ("Learning rate", "none", [query("layer", "train_learning_rate", _LAYER)], False),
    ],
    "GPUs": [
        (
            "A step, issued by the host and computed",
            "ms",
            [
                query("stage", "issue_ms", f"{_STAGE}, issued"),
                query("stage", "kernel_ms", f"{_STAGE}, computed"),
            ],
            False,
        ),
        (
            "Memory in use",
            "mbytes",
            [{"expr": "ray_node_gram_used", "legendFormat": "{{instance}} GPU {{GpuIndex}}"}],
            False,
        ),
        (
            "Counter of use (100 % also while a kernel waits)",
            "percent",
            [{"expr": "ray_node_gpus_utilization", "legendFormat": "{{instance}} GPU {{GpuIndex}}"}],
            False,
        ),
        (
            "Power",
            "mwatt",
            [{"expr": "ray_node_gpu_power_milliwatts", "legendFormat": "{{instance}} GPU {{GpuIndex}}"}],
            False,
        ),
    ],
}
"""Panels by row: title, unit, queries, and whether it is one for each stage, with its lines stacked."""


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row, wanted in ROWS.items():
        place = {"x": 0, "y": top, "w": _WIDTH * _ACROSS, "h": 1}
        panels.append({"type": "row", "title": row, "gridPos": place, "id": len(panels) + 1, "collapsed": False})
        top += 1
        for number, (title, unit, queries, stacked) in enumerate(wanted):
            down, across = divmod(number, _ACROSS)
            place = {"x": across * _WIDTH, "y": top + down * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
            panels.append(_panel(len(panels) + 1, title, unit, queries, place, stacked=stacked))
            if stacked:
                panels[-1] |= {"repeat": "stage", "repeatDirection": "h", "maxPerRow": _ACROSS}
        top += _HEIGHT * -(-len(wanted) // _ACROSS)
    return {
        "uid": "localpipe",
        "title": "localpipe: every stage of a run",
        "tags": ["localpipe"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "templating": {"list": [_source_variable(), _variable("run", "Run"), _variable("stage", "Stage")]},
        "panels": panels,
    }


def _panel(
    number: int, title: str, unit: str, queries: list[dict[str, str]], place: dict[str, int], *, stacked: bool
) -> dict[str, Any]:
    custom = {
        "lineWidth": 1,
        "fillOpacity": 20 if stacked else 0,
        "stacking": {"mode": "normal" if stacked else "none"},
    }
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {"legend": {"showLegend": True, "displayMode": "list", "placement": "bottom"}},
        "targets": [
            {**one, "refId": chr(ord("A") + place), "datasource": _SOURCE} for place, one in enumerate(queries)
        ],
    }


def _source_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variable(label: str, title: str) -> dict[str, Any]:
    """A choice among the values of a label, all unless chosen."""
    return {
        "name": label,
        "label": title,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": f"label_values(ray_localpipe_stage_utilisation, {label})", "refId": label},
        "refresh": 2,
        "sort": 3,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
