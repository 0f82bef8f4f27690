"""`launch PRESET … --cluster FILE`, with --sweep or not, `launch attach FILE` and `launch down FILE`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from launch.cluster.cluster_file import ClusterFile, NoHeadError, read_cluster
from launch.cluster.head import Head
from launch.cluster.jobs import Job, Jobs, jobs_of
from launch.cluster.stop import stop_ray
from launch.command_line.arguments import ResumeArguments
from launch.command_line.options import take_options
from launch.command_line.parse import RunArguments
from launch.output.console import make_console, say, warn
from launch.output.run_folder import RUNS, is_sweep, new_path
from launch.signals import INTERRUPTED
from launch.sweep.points import settings_of
from launch.sweep.record import Asked
from pipeline.config import build, checks
from pipeline.errors import RunError, UserError

_RUNS = "runs"
"""Where runs are on the head, below its home folder."""


def run_there(parsed: RunArguments, arguments: Sequence[str], cluster: Path, console: Console) -> int:
    """`launch PRESET --cluster FILE`: trains on a cluster, and fetches the run folder. Returns the run's exit status.

    Args:
        arguments: as typed, with the preset.

    Raises:
        UserError: a mistake in the settings, the run folder is there already, or the file is no cluster.yaml.
        RunError: the cluster, or its Ray, cannot be reached.
    """
    settings = build.expand_baseline(parsed.run)
    checks.check(settings)
    path = new_path(settings.run_dir, settings.preset)
    there = [*_for_there(arguments), "--run-dir", f"{_RUNS}/{path.name}", *_cut_short(parsed)]
    return _start(path, path.name, there, cluster, console, detach=parsed.detach, quiet=parsed.quiet)


def sweep_there(asked: Asked, parsed: RunArguments, arguments: Sequence[str], cluster: Path, console: Console) -> int:
    """`launch PRESET --sweep … --cluster FILE`: the whole sweep is one job there, and its folder is fetched, with every
    run and the table. Returns the sweep's exit status. Where --run-dir is a sweep's folder, it goes on there, as
    ``resume_there`` has a run go on. All else as ``run_there``.
    """
    settings_of(asked, checks.check)
    run_dir, file = parsed.run.run_dir, read_cluster(cluster)
    if run_dir is not None and is_sweep(run_dir):
        path = Path(run_dir)
        _bring(path, file, quiet=parsed.quiet)
    else:
        path = new_path(run_dir, f"{parsed.run.preset}-sweep")
    there = [*_for_there(arguments), "--run-dir", f"{_RUNS}/{path.name}"]
    if "max-steps" not in asked.axes:
        there += _cut_short(parsed)
    return _start(path, _again(path.name), there, cluster, console, detach=parsed.detach, quiet=parsed.quiet)


def resume_there(parsed: ResumeArguments, arguments: Sequence[str], cluster: Path, console: Console) -> int:
    """`launch resume RUN --cluster FILE`: goes on with a run there, from its folder on the head, else from the one
    here, which is sent there first. All else as ``run_there``.
    """
    run, file = Path(parsed.run), read_cluster(cluster)
    name = _bring(run, file, quiet=parsed.quiet)
    there = [f"{_RUNS}/{name}" if argument == parsed.run else argument for argument in _for_there(arguments)]
    job = _again(name)
    return _start(run, job, ["resume", *there], cluster, console, detach=parsed.detach, quiet=parsed.quiet)


def _bring(folder: Path, file: ClusterFile, *, quiet: bool) -> str:
    """Sends the head a folder that goes on there, unless it has one of that name. Returns its name.

    Raises:
        UserError: it is nowhere.
        RunError: the head is not reached, or it cannot be copied.
    """
    name, head = folder.resolve().name, Head(file)
    if not head.has(f"{_RUNS}/{name}"):
        if not folder.is_dir():
            raise UserError(f"{folder}: is neither here nor in ~/{_RUNS} on {file.head}.")
        say(make_console(quiet=quiet), f"sending {folder} …")
        head.send(folder, name)
    return name


def _again(name: str) -> str:
    """What a job is called that may not be the first of its folder."""
    return f"{name}-{time.strftime('%H%M%S')}"


def _cut_short(parsed: RunArguments) -> list[str]:
    """What the environment here may say of the run."""
    steps = parsed.run.train.max_steps
    return [] if steps is None else ["--max-steps", str(steps)]


def _for_there(arguments: Sequence[str]) -> list[str]:
    """What was typed, without what is meant for here."""
    _, rest = take_options(list(arguments), "--cluster", "a cluster.yaml")
    return [argument for argument in rest if argument != "--detach"]


def _start(
    path: Path, job: str, arguments: Sequence[str], cluster: Path, console: Console, *, detach: bool, quiet: bool
) -> int:
    file, aside = read_cluster(cluster), make_console(quiet=quiet)
    head = Head(file)
    say(aside, f"running on {file.head} as the Ray job {job} (--cluster {cluster}) …")
    with jobs_of(head, file.head) as jobs:
        started = jobs.start(path, job, arguments)
        if detach:
            say(console, f"started. Follow and fetch it with: launch attach {cluster} {started.run}")
            return 0
        return _follow(started, jobs, head, file, console, aside)


def attach(cluster: Path, run: str | None, console: Console) -> int:
    """Shows a run that was started on a cluster, from its first line on, and fetches its folder.

    Args:
        run: its name; None: the newest one.

    Returns the run's exit status.

    Raises:
        UserError: the cluster knows no such run.
        RunError: as of ``run_there``.
    """
    file, aside = read_cluster(cluster), make_console()
    head = Head(file)
    with jobs_of(head, file.head) as jobs:
        known = jobs.all()
        name = None if run is None else Path(run).name
        job = next((job for job in reversed(known) if name in (None, job.run)), None)
        if job is None:
            names = ", ".join(dict.fromkeys(one.run for one in known)) or "none"
            raise UserError(
                f"{run or 'attach'}: no such run was started since `ray up`. There are: {names}. "
                f"`ray rsync-down {cluster} '~/{_RUNS}/' {RUNS}/` fetches older ones."
            )
        say(aside, f"{job.run} on {file.head}{', which is over' if job.ended else ''}:")
        return _follow(job, jobs, head, file, console, aside)


def _follow(job: Job, jobs: Jobs, head: Head, file: ClusterFile, console: Console, aside: Console) -> int:
    status = jobs.follow(job, console, aside)
    if status is None:
        say(aside, f"left. Follow and fetch it with: launch attach {file.path} {job.run}")
        return INTERRUPTED
    say(aside, "fetching the run folder …")
    if head.fetch(job.run, job.into):
        say(aside, f"fetched: {job.into / job.run}")
    return status


def down(cluster: Path, console: Console) -> None:
    """Ends Ray on all machines of a cluster, removes the private key that `ray up` left on the head, and gives a
    cloud's machines back.

    Raises:
        UserError: the file is no cluster.yaml.
        RunError: a machine cannot be reached; the others are done all the same. Of a cloud's it is no error: they are
            given back in any case.
    """
    with suppress(NoHeadError):  # workers that are left without one go on costing
        file = read_cluster(cluster)
        try:
            stop_ray(file, console)
        except RunError as error:
            if not file.lent:
                raise
            warn(str(error))
    # Ray's own notes of what is up; and a cloud's machines.
    done = subprocess.run(  # noqa: S603 (Ray's own command, with a file that it reads)
        [sys.executable, "-m", "ray.scripts.scripts", "down", "--yes", str(cluster)],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise RunError(f"`ray down {cluster}` failed:\n{done.stdout}{done.stderr}".rstrip())
    say(console, f"{cluster} is down")
