"""The script that sbatch takes: a job's options, the run's command, and what is the same for every job (job.sh)."""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from launch.output.run_folder import RUNS
from launch.slurm.arguments import JobArguments
from pipeline.config.build import num_stages
from pipeline.config.checks import num_layers
from pipeline.config.settings import Settings
from pipeline.errors import UserError
from pipeline.runtime.allocator import ENVIRONMENT

_LIMIT = re.compile(r"(\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+|\d+-\d+:\d\d|\d+-\d+:\d\d:\d\d|UNLIMITED|INFINITE)")
_WORD = re.compile(r"[\w.,:;@%+=/\[\]*&|()-]+", re.ASCII)
_OURS = (
    "nodes",
    "ntasks",
    "ntasks-per-node",
    "cpus-per-task",
    "gpus-per-node",
    "time",
    "partition",
    "account",
    "signal",
)
"""Options of sbatch that have flags here, or that the script relies on."""
_MOST_SECONDS = 65_535  # sbatch's own


def check(job: JobArguments, settings: Settings) -> None:
    """Refuses what sbatch would, or would misread, and a job in which the run cannot be. Raises UserError."""
    for name, value, least, most in (
        ("nodes", job.nodes, 1, None),
        ("gpus-per-node", job.gpus_per_node, 0, None),
        ("cpus-per-node", job.cpus_per_node, 1, None),
        ("stop-before", job.stop_before, 1, _MOST_SECONDS),
        ("join-timeout", job.join_timeout, 1, None),
    ):
        if value is not None and (value < least or (most is not None and value > most)):
            raise UserError(f"--{name} {value}: must be at least {least}{'' if most is None else f', at most {most}'}.")
    if job.time is not None and not _LIMIT.fullmatch(job.time):
        raise UserError(
            f"--time {job.time}: minutes, or as in 90:00, 24:00:00, 3-12 and 3-12:00:00 (days before the dash)."
        )
    for name, words in (("partition", [job.partition]), ("account", [job.account]), ("sbatch", job.sbatch)):
        for word in words:
            if word is not None and not _WORD.fullmatch(word):
                raise UserError(f"--{name} {word}: must be one word that sbatch takes, without spaces and quotes.")
    for option in job.sbatch:
        name = option.removeprefix("--").split("=")[0]
        if option.startswith("-") or name in _OURS:
            raise UserError(
                f"--sbatch {option}: give the option's long name without dashes, such as mem=64G, and none of "
                f"{', '.join(_OURS)}, which have flags of their own or are the script's."
            )
    for line in job.setup:
        if "\n" in line:
            raise UserError("--setup takes one line of shell. Give it once more for the next one.")
    if settings.pipeline.device == "cuda" and not job.gpus_per_node:
        raise UserError("`device` cuda: the job asks for no GPU. Give --gpus-per-node as well.")


def script(job: JobArguments, settings: Settings, command: Sequence[str], *, typed: str) -> str:
    """The job's script.

    Args:
        settings: of the run, checked.
        command: arguments of `launch` for it.
        typed: the command line that this answers, for whoever reads the script.
    """
    return "\n".join(
        [
            "#!/bin/bash",
            f"# {_one_line(typed)}",
            *(f"#SBATCH --{option}" for option in _options(job, settings)),
            "set -euo pipefail",
            "",
            f"arguments=({shlex.join(command)})",
            "# Where every node that may get this job sees it. LOCALPIPE_RUN=RUN for sbatch goes on with that run.",
            f"run=${{LOCALPIPE_RUN:-{_place(settings)}}}",
            f"join_timeout={job.join_timeout}",
            "set_up() {",
            "    set +u # what modules and environments source is seldom written for it",
            *(f"    {line}" for line in job.setup),
            "    set -u",
            f"    PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
            "}",
            *(f"export {name}={value}" for name, value in {**ENVIRONMENT, "RAY_worker_niceness": "0"}.items()),
            "",
            files("launch.slurm").joinpath("job.sh").read_text("utf-8"),
        ]
    )


def cores(job: JobArguments, settings: Settings) -> int:
    """Cores that a node gets: for its stages, and for what may be there: feeders, coordinator, launching process."""
    if job.cpus_per_node is not None:
        return job.cpus_per_node
    devices = job.nodes * job.gpus_per_node or num_layers(settings)
    stages = math.ceil(num_stages(settings, devices) / job.nodes)
    return stages * settings.pipeline.threads + settings.pipeline.feeders + 2


def _options(job: JobArguments, settings: Settings) -> list[str]:
    given = {
        "job-name": settings.preset,
        "output": "%x-%j.log",
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": cores(job, settings),
        "gpus-per-node": job.gpus_per_node or None,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "signal": f"B:USR1@{job.stop_before}",
        "open-mode": "append",
    }
    # The last one counts with sbatch, so that a person's own stand behind these.
    return [*(f"{name}={value}" for name, value in given.items() if value is not None), "requeue", *job.sbatch]


def _place(settings: Settings) -> str:
    if settings.run_dir is not None:
        return shlex.quote(settings.run_dir)
    return f"{RUNS}/{settings.preset}-$SLURM_JOB_ID"


def _one_line(text: str) -> str:
    return " ".join(text.split())
