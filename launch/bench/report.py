"""The report: a table for the console, the same for Markdown, and every figure as JSON.

bench.json   settings, machine, every round's raw figures, medians, conclusion
bench.md     the table and the conclusion, ready to paste
bench.png    the picture (launch/bench/picture.py); bench.pdf for print
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from launch.bench.accuracy import TimeTo
from launch.bench.entries import Entry
from launch.bench.figures import Figures, Ratio
from launch.bench.picture import draw
from launch.output.console import say
from launch.output.pictures.style import write
from launch.output.tables import print_table

_MIB = 2**20
_COLUMNS = (
    "row",
    "images/s",
    "range",
    "× ddp",
    "× serial",
    "speed-up (ideal)",
    "utilisation",
    "peak MiB",
    "MB/step",
)
LEGEND = (
    "images/s: median of the rounds, and their range. × ddp, × serial: ratio of medians to ddp and cff-serial-1, or a "
    "preset's serial. Speed-up: work of all stages over time, beside the ideal Σt/max t of the same rounds, the "
    "pipeline being full. Utilisation: share of time that each device computed. Peak: resident memory of a CPU "
    "device's process, the allocator's peak on a GPU, of each device. MB/step: sent between devices."
)


def cells(row: Figures, *, ranges: bool) -> list[str]:
    """A measured row of the table as text; with ``ranges`` ratios have their range round by round."""
    assert row.images_per_second is not None, "asked for rows that were measured"
    ideal = row.ideal
    return [
        row.label + (" †" if row.trouble else ""),
        f"{row.images_per_second:,.0f}",
        f"{row.low:,.0f}–{row.high:,.0f}",
        _ratio(row.to_backprop, ranges=ranges),
        _ratio(row.to_serial, ranges=ranges),
        f"{ideal.measured_speedup:.2f} ({ideal.speedup:.2f})" if ideal and len(row.devices) > 1 else "",
        " ".join(f"{100 * device.shares.get('busy', 0.0):.0f}" for device in row.devices) + " %",
        " ".join(f"{device.peak_bytes / _MIB:,.0f}" for device in row.devices),
        f"{(row.bytes_per_step or 0) / 1e6:,.1f}",
    ]


def print_report(
    console: Console, title: str, rows: Sequence[Figures], times: Sequence[TimeTo], conclusion: Sequence[str]
) -> None:
    """The table on the console, and below it what it means."""
    measured = [cells(row, ranges=False) for row in rows if row.images_per_second is not None]
    print_table(console, _COLUMNS, measured, title=title, left=_COLUMNS[:1])
    for row in rows:
        if row.trouble is not None:
            dagger = "† " if row.images_per_second is not None else ""
            say(console, f"{dagger}{row.label}: {row.trouble}")
    print_table(
        console, TimeTo.COLUMNS, [time.cells() for time in times], title="Time to accuracy", left=TimeTo.COLUMNS[:1]
    )
    console.print(LEGEND, highlight=False, style="dim")
    for sentence in conclusion:
        say(console, sentence)


def markdown(
    title: str, command: str, rows: Sequence[Figures], times: Sequence[TimeTo], conclusion: Sequence[str]
) -> str:
    """The same as a page of Markdown."""
    lines = [f"**{title}**", "", "```", command, "```", ""]
    lines += _markdown_table(_COLUMNS, [cells(row, ranges=True) for row in rows if row.images_per_second is not None])
    lines += [f"{row.label}: {row.trouble}  " for row in rows if row.trouble is not None]
    if times:
        lines += ["", *_markdown_table(TimeTo.COLUMNS, [time.cells() for time in times])]
    lines += ["", LEGEND, "", *[f"- {sentence}" for sentence in conclusion]]
    return "\n".join(lines) + "\n"


def write_report(
    folder: Path,
    *,
    title: str,
    facts: dict[str, Any],
    entries: Sequence[Entry],
    rows: Sequence[Figures],
    times: Sequence[TimeTo],
    conclusion: Sequence[str],
) -> None:
    """Writes the files.

    Args:
        facts: what is not a row's: command, settings, machine, feeder, curves.
    """
    folder.mkdir(parents=True, exist_ok=True)
    raw = [
        {
            **dataclasses.asdict(row),
            "rounds": [
                {"round": number + 1, **dataclasses.asdict(taken)} for number, taken in sorted(entry.rounds.items())
            ],
        }
        for row, entry in zip(rows, entries, strict=True)
    ]
    values = {
        "format": 1,
        "title": title,
        **facts,
        "rows": raw,
        "time_to_accuracy": [dataclasses.asdict(time) for time in times],
        "conclusion": list(conclusion),
    }
    (folder / "bench.json").write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    (folder / "bench.md").write_text(markdown(title, facts["command"], rows, times, conclusion))
    if any(row.images_per_second is not None for row in rows):
        write(draw(title, rows), folder / "bench.png", "pdf")


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    return [
        "| " + " | ".join(columns) + " |",
        "|---" + "|---:" * (len(columns) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def _ratio(ratio: Ratio | None, *, ranges: bool) -> str:
    if ratio is None:
        return ""
    if not ranges or ratio.low == ratio.high:
        return f"{ratio.of_medians:.2f}"
    return f"{ratio.of_medians:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"
