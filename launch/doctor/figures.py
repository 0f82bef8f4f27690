"""What each step of `launch doctor --gpu` found: from the files that it left to tables and sentences of the report.

A step that was stopped has left what it had until then, and that is read like the rest.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.doctor.costs import COLUMNS, rows_of
from launch.doctor.learning import Point, Reached, sentence
from launch.doctor.steps import Reader

_MIB, _MB = 2**20, 1e6
_TEST = re.compile(r"^(\S+::\S.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
_NAMED = 20  # failed tests that the report names


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the report; its first column holds words."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a step found.

    Attributes:
        tables, sentences: for people.
        raw: the file that it left, as JSON values; None of a step that leaves none.
        picture: one that it drew itself.
    """

    tables: tuple[Table, ...] = ()
    sentences: tuple[str, ...] = ()
    raw: Any = field(default=None, repr=False)
    picture: Path | None = None


def read(reader: Reader, folder: Path, log: str) -> Figures | None:
    """What a step found; None where it left nothing.

    Args:
        folder: where its files are.
        log: what it printed.

    Raises:
        ValueError, KeyError, OSError: a file that is not as such a step leaves it.
    """
    return _READERS[reader](folder, log)


def _tests(_: Path, log: str) -> Figures | None:
    found = [match for line in log.splitlines() if (match := _TEST.match(line))]
    if not found:
        return None
    counts = Counter(match[2].lower() for match in found)
    bad = [match[1] for match in found if match[2] in ("FAILED", "ERROR")]
    said = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    more = [f"and {len(bad) - _NAMED} more"] if len(bad) > _NAMED else []
    reasons = sorted({line.split(": ", 1)[1] for line in log.splitlines() if re.match(r"SKIPPED \[\d+\] .*: ", line)})
    return Figures(
        sentences=(
            f"{said}.",
            *(f"Failed: {name}" for name in bad[:_NAMED]),
            *more,
            *(f"Skipped: {reason}" for reason in reasons),
        ),
        raw={"counts": dict(counts), "failed": bad},
    )


def _costs(folder: Path, _: str) -> Figures | None:
    raw = _json(folder / "costs.json")
    if raw is None:
        return None
    rows = rows_of(folder / "costs.json")
    table = Table(headings=COLUMNS, rows=tuple(tuple(row.cells()) for row in rows if row.cost is not None))
    troubles = tuple(f"{row.way}: {row.trouble}" for row in rows if row.trouble)
    return Figures(tables=(table,), sentences=troubles, raw=raw)


def _bench(folder: Path, _: str) -> Figures | None:
    raw = _json(folder / "bench.json")
    if raw is None:
        return None
    headings = ("row", "images/s", "range", "× ddp", "× serial", "busy of each device", "peak MiB")
    rows = []
    for row in raw["rows"]:
        if row["images_per_second"] is None:
            continue
        ratios = [row["to_backprop"], row["to_serial"]]
        rows.append(
            (
                _label(row),
                f"{row['images_per_second']:,.0f}",
                f"{row['low']:,.0f}–{row['high']:,.0f}",
                *("" if ratio is None else f"{ratio['of_medians']:.2f}" for ratio in ratios),
                " ".join(f"{100 * device['shares'].get('busy', 0.0):.0f} %" for device in row["devices"]),
                " ".join(f"{device['peak_bytes'] / _MIB:,.0f}" for device in row["devices"]),
            )
        )
    absent = tuple(f"{_label(row)}: {row['trouble']}" for row in raw["rows"] if row["trouble"])
    picture = folder / "bench.png"
    return Figures(
        tables=(Table(headings=headings, rows=tuple(rows), title=raw["title"]),),
        sentences=(*raw["conclusion"], *absent),
        raw=raw,
        picture=picture if picture.is_file() else None,
    )


def _plan(folder: Path, _: str) -> Figures | None:
    raw = _json(folder / "plan.json")
    if raw is None:
        return None
    parts = ("enter", "forward", "loss", "backward", "update")
    layers = tuple(
        (str(number), *(f"{1e3 * cost[part]:,.2f}" for part in parts))
        for number, cost in enumerate(raw["profile"]["alone"], start=1)
    )
    predicted = tuple(
        (
            f"{row['devices']}",
            f"{len(row['stages'])}",
            f"{row['images_per_second']:,.0f}",
            f"{row['speedup']:.2f}",
            f"{row['ideal']:.2f}",
            row["limit"],
        )
        for row in raw["predictions"]
    )
    tables = [
        Table(headings=("layer", *(f"{part} ms" for part in parts)), rows=layers, title="Each layer's step"),
        Table(
            headings=("devices", "stages", "images/s", "speed-up", "ideal", "limit"), rows=predicted, title="Predicted"
        ),
    ]
    if raw["measured"]:
        headings = ("stages", "predicted images/s", "measured images/s", "difference")
        rows = tuple(
            (
                str(len(row["stages"])),
                f"{row['images_per_second']:,.0f}",
                f"{row['measured']:,.0f}",
                f"{100 * row['difference']:+.1f} %",
            )
            for row in raw["measured"]
        )
        tables.append(Table(headings=headings, rows=rows, title="Measured"))
    return Figures(tables=tuple(tables), raw=raw)


def _memory(folder: Path, _: str) -> Figures | None:
    raw = _json(folder / "memory.json")
    if raw is None:
        return None
    peaks = {(peak["depth"], peak["what"]): peak["bytes"] for peak in raw["peaks"]}
    kinds = ("stage", "serial", "backprop")
    rows = []
    for depth in dict.fromkeys(depth for depth, _ in peaks):
        held = [peaks.get((depth, kind)) for kind in kinds]
        rows.append((str(depth), *("–" if each is None else f"{each / _MIB:,.0f}" for each in held)))
    table = Table(
        headings=("layers", "a stage of one layer", "serial loop", "backprop"), rows=tuple(rows), title="Peak, MiB"
    )
    troubles = [
        f"{peak['what']} of {peak['depth']} layers: {peak['trouble']}" for peak in raw["peaks"] if peak["trouble"]
    ]
    return Figures(tables=(table,), sentences=(raw["conclusion"], *troubles), raw=raw)


def _transport(folder: Path, _: str) -> Figures | None:
    raw = _json(folder / "transport.json")
    if raw is None:
        return None
    rows = tuple(
        (
            cost["way"],
            f"{cost['bytes'] / _MB:g}",
            "–" if cost["mb_per_second"] is None else f"{cost['mb_per_second']:,.0f}",
            f"{cost['us']:,.1f}",
            f"{cost['cpu_us']:,.1f}",
        )
        for cost in raw["costs"]
    )
    table = Table(headings=("way", "MB", "MB/s", "µs a message", "CPU µs a message"), rows=rows)
    return Figures(tables=(table,), sentences=(raw["conclusion"], *raw["absent"].values()), raw=raw)


def _learning(folder: Path, _: str) -> Figures | None:
    raw = _json(folder / "learning.json")
    if raw is None:
        return None
    points = [Point(**point) for point in raw["points"]]
    about = f"{raw['net']} on {raw['data']}, {raw['learning']}, stages: {raw['stages']}."
    said = tuple(f"{sentence(Reached(**one), points)}." for one in raw["reached"])
    return Figures(sentences=(about, *said), raw=raw)


_READERS: dict[Reader, Callable[[Path, str], Figures | None]] = {
    "tests": _tests,
    "costs": _costs,
    "bench": _bench,
    "plan": _plan,
    "memory": _memory,
    "transport": _transport,
    "learning": _learning,
}


def markdown_table(table: Table) -> list[str]:
    """Lines of Markdown, the figures to the right."""
    if not table.rows:
        return []

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    titled = [f"**{table.title}**", ""] if table.title else []
    rule = "|---" + "|---:" * (len(table.headings) - 1) + "|"
    return [*titled, line(table.headings), rule, *map(line, table.rows), ""]


def _label(row: dict[str, Any]) -> str:
    name: str = row["name"]
    return name if row["source"] == "memory" else f"{name} (feeder)"


def _json(file: Path) -> Any:
    return json.loads(file.read_text()) if file.is_file() else None
