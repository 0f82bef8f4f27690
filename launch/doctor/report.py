"""The folder that `launch doctor --gpu` leaves, written anew after every step, so that a run cut short leaves one too.

report.md        for a person: machine, topology, steps, and what each found with the command that repeats it
report.json      the same, with every figure as it was measured
topology.txt     nvidia-smi topo -m
*.png            throughput by configuration, memory by depth, accuracy by second, and the benchmarks' own
logs/STEP.txt    what each step printed

Everything but the pictures goes through a redaction: a stranger attaches this folder to a public issue.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from launch.doctor import pictures
from launch.doctor.checks import Finding
from launch.doctor.figures import Figures, markdown_table
from launch.doctor.figures import Table as FiguresTable
from launch.doctor.machine import Machine
from launch.doctor.redaction import Redaction
from launch.doctor.steps import Step
from launch.output.console import counted
from launch.output.pictures.style import write
from launch.output.whole_file import write_whole

FORMAT = 1
"""Of report.json; raised when a name there changes its meaning."""

Status = Literal["done", "failed", "stopped", "skipped"]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """How a step ended.

    Attributes:
        status: ``failed`` by itself; ``stopped`` when its time was over, or by hand; ``skipped``: it never began.
        seconds: that it took.
        reason: why it did not end as it should; "" where it did.
        figures: what it found, as far as it came.
    """

    step: Step
    status: Status
    seconds: float = 0.0
    reason: str = ""
    figures: Figures | None = None


@dataclass(kw_only=True)
class Report:
    """What is reported, as far as the run has come.

    Attributes:
        device: "cuda" or "cpu".
        command, started: as typed; local time with zone.
        minutes: that it might take.
        num_steps: that it is to run.
        note: what a reader must know of the benchmarks' data; "" where nothing.
    """

    folder: Path
    redaction: Redaction
    machine: Machine
    findings: Sequence[Finding]
    device: str
    command: str
    started: str
    minutes: float
    num_steps: int
    note: str = ""
    results: list[StepResult] = field(default_factory=list)

    def add(self, result: StepResult, log: str = "") -> None:
        """Takes a step's end, and writes everything."""
        self.results.append(result)
        if log:
            self._write(f"logs/{result.step.name}.txt", log)
        if result.figures is not None and result.figures.picture is not None:
            shutil.copyfile(result.figures.picture, self.folder / f"{result.step.name}.png")
        self.write()

    def write(self) -> None:
        """Writes what there is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        drawn = self._draw()
        self._write("topology.txt", self.machine.topology or "There is no nvidia-smi that tells.\n")
        values = self.redaction.values(self._values())
        self._write("report.json", json.dumps(values, indent=2, ensure_ascii=False) + "\n", redact=False)
        self._write("report.md", markdown(self, drawn))

    def _write(self, name: str, text: str, *, redact: bool = True) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, self.redaction.text(text) if redact else text)

    def _values(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "command": self.command,
            "started": self.started,
            "device": self.device,
            "minutes": self.minutes,
            "num_steps": self.num_steps,
            "note": self.note,
            "machine": asdict(self.machine),
            "findings": [asdict(finding) for finding in self.findings],
            "steps": [_step_values(result) for result in self.results],
        }

    def _draw(self) -> dict[str, str]:
        """Draws what can be drawn. Returns titles by the names of the files."""
        costs = [row for raw in self._raw("costs") for row in raw["rows"] if row["cost"] is not None]
        peaks = [peak for raw in self._raw("memory") for peak in raw["peaks"] if peak["bytes"] is not None]
        runs = {f"{raw['net']}, {raw['learning']}": raw["points"] for raw in self._raw("learning") if raw["points"]}
        drawn: dict[str, tuple[str, Figure]] = {}
        if costs:
            drawn["throughput.png"] = "Throughput of one device by configuration", pictures.throughput(costs)
        if peaks:
            drawn["memory.png"] = "Peak memory by depth", pictures.memory(peaks)
        if runs:
            drawn["accuracy.png"] = "Validation accuracy by second", pictures.accuracy(runs)
        for name, (_, figure) in drawn.items():
            write(figure, self.folder / name)
        return {name: title for name, (title, _) in drawn.items()}

    def _raw(self, reader: str) -> list[Any]:
        return [
            result.figures.raw
            for result in self.results
            if result.step.reader == reader and result.figures is not None and result.figures.raw is not None
        ]


def _step_values(result: StepResult) -> dict[str, Any]:
    figures = result.figures
    return {
        "name": result.step.name,
        "title": result.step.title,
        "command": result.step.shown(),
        "status": result.status,
        "seconds": round(result.seconds, 1),
        "limit": result.step.limit,
        "reason": result.reason,
        "sentences": [] if figures is None else list(figures.sentences),
        "tables": [] if figures is None else [asdict(table) for table in figures.tables],
        "raw": None if figures is None else figures.raw,
    }


def in_short(results: Sequence[StepResult], num_steps: int) -> str:
    """How many steps ended in which way: "10 of 20 steps have ended: 9 done, 1 failed"."""
    order: tuple[Status, ...] = ("done", "failed", "stopped", "skipped")
    counts = {status: sum(result.status == status for result in results) for status in order}
    said = [f"{count} {status}" for status, count in counts.items() if count]
    ended = f"{len(results)} of {counted(num_steps, 'step')} have ended"
    return f"{ended}: {', '.join(said)}" if said else ended


def markdown(report: Report, drawn: dict[str, str]) -> str:
    """The page for a person.

    Args:
        drawn: titles of pictures by the names of their files.
    """
    versions = report.machine.versions
    gpus = ", ".join(gpu.name for gpu in report.machine.torch_gpus) or "no GPU"
    title = (
        "GPU report" if report.device == "cuda" else "Report on CPUs, in small sizes: it shows that the report works"
    )
    about = f"localpipe {versions.get('localpipe')}, PyTorch {versions.get('torch')}, {gpus}"
    lines = [
        f"# {title}",
        "",
        f"{about}. Begun {report.started}, at most {report.minutes:g} minutes: `{report.command}`.",
        "",
        f"{in_short(report.results, report.num_steps)}.",
        "",
        *([report.note, ""] if report.note else []),
    ]
    for name, picture in drawn.items():
        lines += [f"**{picture}**", "", f"![{picture}]({name})", ""]
    lines += ["## Machine", "", *_findings(report.findings)]
    if report.machine.topology:
        lines += ["```text", report.machine.topology.rstrip(), "```", ""]
    lines += ["## Steps", "", *_steps(report.results)]
    for result in report.results:
        if result.status != "skipped":
            lines += _section(result)
    return "\n".join(lines).rstrip() + "\n"


def _findings(findings: Sequence[Finding]) -> list[str]:
    rows = tuple(
        (one.name, one.status, " → ".join(part for part in (one.text, one.advice) if part)) for one in findings
    )
    return _words(("what", "is", "how"), rows)


def _steps(results: Sequence[StepResult]) -> list[str]:
    rows = tuple(
        (
            result.step.name,
            result.status,
            f"{result.seconds:,.0f} of {result.step.limit:,.0f}" if result.seconds else "–",
            result.reason or result.step.title,
        )
        for result in results
    )
    return _words(("step", "status", "seconds", "what it is, or why not"), rows)


def _words(headings: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> list[str]:
    """A table of words: all of it to the left."""
    lines = markdown_table(FiguresTable(headings=headings, rows=rows))
    return [lines[0], "|---" * len(headings) + "|", *lines[2:]] if lines else []


def _section(result: StepResult) -> list[str]:
    step, figures = result.step, result.figures
    lines = [f"## {step.name}: {step.title}", "", "```text", step.shown(), "```", ""]
    if result.reason:
        lines += [f"{result.status}: {result.reason}", ""]
    if figures is not None:
        for table in figures.tables:
            lines += markdown_table(table)
        lines += [f"- {said}" for said in figures.sentences]
        lines += [""] if figures.sentences else []
        if figures.picture is not None:
            lines += [f"![{step.title}]({step.name}.png)", ""]
    return [*lines, f"[what it printed](logs/{step.name}.txt)", ""]
