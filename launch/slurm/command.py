"""`launch slurm PRESET > job.sh`: checks a run and prints it as a job for sbatch."""

from __future__ import annotations

import shlex
import sys

from launch.command_line.options import take_options
from launch.command_line.parse import RunArguments, parse, parse_run, unknown
from launch.output.console import counted, make_console, say
from launch.output.logs.places import check_logs
from launch.output.mirror import check_mirror
from launch.presets import PRESETS
from launch.slurm.arguments import JobArguments
from launch.slurm.script import check, cores, script
from pipeline import plugins
from pipeline.config import build, checks
from pipeline.config.settings import Settings
from pipeline.errors import UserError

_ABOUT = """Checks a run and prints a script for Slurm: `launch slurm cff-vit > job.sh`, then `sbatch job.sh`. The job
starts a Ray cluster of its own on its nodes and trains. Before its time limit it saves a checkpoint, queues itself
again and goes on from there. Flags of the run follow those of the job, behind --."""


def slurm(arguments: list[str]) -> None:
    """Prints the script.

    Raises:
        UserError: a mistake in the job, or in the run that it is to do.
    """
    place = arguments.index("--") if "--" in arguments else len(arguments)
    own, flags = arguments[:place], arguments[place + 1 :]
    job = parse(JobArguments, own, command="launch slurm", about=_ABOUT)
    if job.preset not in PRESETS:
        raise UserError(unknown(job.preset, PRESETS, "preset"))
    settings = _checked(parse_run(job.preset, flags))
    check(job, settings)
    loaded = [word for name in plugins.loaded() for word in ("--plugin", name)]
    _, flags = take_options(flags, "--run-dir", "a folder")  # the script's own, where the job goes on
    typed = shlex.join(["launch", "slurm", *arguments])
    sys.stdout.write(script(job, settings, [*loaded, job.preset, *flags], typed=typed))
    each = [counted(job.gpus_per_node, "GPU")] if job.gpus_per_node else []
    each.append(counted(cores(job, settings), "core"))
    say(make_console(sys.stderr), f"{counted(job.nodes, 'node')}, {' and '.join(each)} each. Submit it with sbatch.")


def _checked(parsed: RunArguments) -> Settings:
    """The run's settings, as they would be refused by `launch` when the job's turn has come."""
    settings = build.expand_baseline(parsed.run)
    pipe = settings.pipeline
    if parsed.dry_run:
        raise UserError("--dry-run: `launch slurm` starts nothing anyway. Leave it out.")
    if pipe.executor != "ray":
        raise UserError(f"`executor` {pipe.executor}: a job of `launch slurm` trains on Ray. Leave it out.")
    if pipe.ray_address is not None:
        raise UserError(f"`ray_address` {pipe.ray_address}: the job starts a Ray cluster of its own. Leave it out.")
    checks.check(settings)
    checks.check_data(settings)
    check_logs(settings)
    if settings.checkpoint.mirror is not None:
        check_mirror(settings.checkpoint.mirror)
    return settings
