"""`launch doctor`: from its flags to its lines, and with --gpu to its report."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from launch.bench.arguments import output_folder
from launch.command_line.parse import parse
from launch.doctor.checks import Finding, check
from launch.doctor.costs import costs
from launch.doctor.learning import learning
from launch.doctor.machine import Machine, look
from launch.doctor.made_up import prepare_made_up
from launch.doctor.redaction import redaction_here
from launch.doctor.report import Report, in_short
from launch.doctor.runner import run_all, run_step
from launch.doctor.steps import Step, steps_for
from launch.output.console import counted, say
from launch.output.run_folder import command_line
from pipeline.data.prepare import default_data_dir
from pipeline.errors import RunError, UserError
from workers.cluster import joined_cluster
from workers.where import where

_MADE_UP = "made-up-images"
_ABOUT = """Is this machine fit for a run: a line for each thing that one needs, ok, warning or problem, with what to
do. Exit status 1 where no run can work.

launch doctor --address ADDRESS: the same of every host of a Ray cluster, whether they have the same software, and
what the channels between neighbours do: MB/s, µs, losses.

launch doctor --gpu: tests and measures everything a report on GPUs should say, step by step, into a folder that can be
attached to an issue: no names, paths or addresses of yours are in it. With --device cpu the same in small sizes, to see
that it works.

launch doctor costs NET …: one training step's time, kernels, busy share and memory.

launch doctor learning PRESET: seconds to an accuracy."""


@dataclass(frozen=True, kw_only=True)
class DoctorArguments:
    """Flags of `launch doctor`."""

    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write what was found to this file. Default: nothing is written."""
    address: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Ray cluster to look at, as auto or 10.0.0.1:6379; local: this machine alone. Default: $RAY_ADDRESS, else that of
    a Ray node that runs here, else local."""
    gpu: tyro.conf.FlagCreatePairsOff[bool] = False
    """Test and measure everything, and write a report."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """With --gpu. auto: CUDA, which must be there. cpu: the same list in small sizes."""
    minutes: float = 30.0
    """With --gpu: for all steps together. What is left over then is skipped, and one that runs is stopped."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="STEP …")] = ()
    """With --gpu: steps to run. Default: all; an unknown name lists them."""
    without: Annotated[tuple[str, ...], tyro.conf.arg(metavar="STEP …")] = ()
    """With --gpu: steps to leave out."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = "gpu-report"
    """With --gpu: new folder for the report."""


def doctor(arguments: list[str], console: Console) -> None:
    """Runs `launch doctor` with these arguments.

    Raises:
        UserError: a mistake in what was asked.
        RunError: something that every run needs is broken, there is no GPU to measure, or a step failed.
        KeyboardInterrupt: stopped by hand, after what was measured has been reported.
    """
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name in _MEASURES:
        _MEASURES[name](rest, console)
        return
    if name and not name.startswith("-"):
        raise UserError(f"launch doctor {name}: there is {' and '.join(_MEASURES)}, or no name at all, then flags.")
    asked = parse(DoctorArguments, arguments, command="launch doctor", default=DoctorArguments(), about=_ABOUT)
    if asked.gpu and not asked.minutes > 0:
        raise UserError(f"--minutes {asked.minutes:g}: must be above 0.")
    if asked.gpu and asked.address is not None:
        raise UserError("--gpu --address: --gpu measures this machine alone. Leave one of them out.")
    place = where(asked.address)
    if place.joined and not asked.gpu:
        findings = _look_at_cluster(asked, place.address, console)
    else:
        machine = look()
        findings = check(machine)
        if asked.json is not None:
            _write(asked.json, findings, {"machine": asdict(machine)})
    for finding in findings:
        say(console, line(finding))
    if asked.gpu:
        _measure(asked, machine, findings, console)
        return
    problems = [finding for finding in findings if finding.status == "problem"]
    if problems:
        raise RunError(f"{counted(len(problems), 'problem')}: {', '.join(one.name for one in problems)}. See above.")


_MEASURES = {"costs": costs, "learning": learning}


def line(finding: Finding) -> str:
    """A finding as it is printed."""
    advice = f" → {finding.advice}" if finding.advice else ""
    return f"{finding.status:8} {finding.name}: {finding.text}{advice}"


def chosen(steps: Sequence[Step], only: Sequence[str], without: Sequence[str]) -> list[Step]:
    """The steps that are asked for, in their order. Raises UserError for names that there are not."""
    names = [step.name for step in steps]
    for flag, given in (("--only", only), ("--without", without)):
        unknown = [name for name in given if name not in names]
        if unknown:
            raise UserError(f"{flag} {' '.join(unknown)}: there is no such step. Steps: {', '.join(names)}.")
    left = [step for step in steps if (not only or step.name in only) and step.name not in without]
    if not left:
        raise UserError(f"--without {' '.join(without)}: no step is left. Steps: {', '.join(names)}.")
    return left


def _measure(asked: DoctorArguments, machine: Machine, findings: Sequence[Finding], console: Console) -> None:
    if asked.device != "cpu" and not machine.torch_gpus:
        raise RunError("no GPU that PyTorch can use is here. --device cpu runs the same list on CPUs in small sizes.")
    device = "cpu" if asked.device == "cpu" else "cuda"
    data = "cifar10" if "cifar10" in machine.prepared else _MADE_UP
    steps = chosen(steps_for(device, len(machine.torch_gpus), data), asked.only, asked.without)
    folder = output_folder(asked.out, "gpu-report")
    work = Path(tempfile.mkdtemp(prefix="localpipe-"))
    try:
        report = Report(
            folder=folder,
            redaction=redaction_here({"WORK": str(work), "REPORT": str(folder), "DATA": str(default_data_dir())}),
            machine=machine,
            findings=findings,
            device=device,
            command=command_line(),
            started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            minutes=asked.minutes,
            num_steps=len(steps),
        )
        if device == "cuda" and data == _MADE_UP:
            report.note = "CIFAR-10 is not prepared here: speed was measured on random images of its size."
            prepare_made_up(work / _MADE_UP)
        report.write()
        try:
            run_all(steps, report, work, minutes=asked.minutes, say=lambda said: say(console, said), run=run_step)
        finally:
            say(console, f"{in_short(report.results, report.num_steps)}. Report: {folder}/report.md")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    failed = [result.step.name for result in report.results if result.status == "failed"]
    if failed:
        raise RunError(f"{counted(len(failed), 'step')} failed: {', '.join(failed)}. The report says why.")


def _look_at_cluster(asked: DoctorArguments, address: str, console: Console) -> list[Finding]:
    say(console, f"looking at the hosts of {address} …")
    with joined_cluster(address):
        from launch.doctor.cluster import check_cluster, look_at_cluster  # noqa: PLC0415 (it imports Ray)

        cluster = look_at_cluster(lambda said: say(console, said))
    findings = check_cluster(cluster)
    if asked.json is not None:
        _write(asked.json, findings, cluster.values())
    return findings


def _write(file: Path, findings: Sequence[Finding], found: dict[str, Any]) -> None:
    values = {"format": 1, **found, "findings": [asdict(finding) for finding in findings]}
    try:
        file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"--json {file}: cannot be written ({error.strerror}). Give another file.") from error
