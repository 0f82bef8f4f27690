"""What a person sees of a sweep: a line for each run that begins or ends, and where those are that go on."""

from __future__ import annotations

from collections.abc import Sequence
from signal import Signals
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from launch.output import live
from launch.output.console import printable, say
from launch.output.display import duration
from launch.output.saved_runs import open_one
from launch.sweep.processes import Job
from pipeline.errors import UserError


class Progress:
    """Shows a sweep's progress. A context manager around it.

    Args:
        total: runs that are to be started.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total, self._ended = console, total, 0
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def began(self, job: Job) -> None:
        """A run was started."""
        how = "goes on" if job.arguments[0] == "resume" else "begins"
        say(self._console, f"{job.name}: {how}")

    def ended(self, job: Job, status: int) -> None:
        """A run has ended, with this exit status."""
        self._ended += 1
        say(self._console, f"{job.name}: {_outcome(job, status)} ({self._ended} of {self._total})")

    def stopping(self) -> None:
        """Runs that go on are asked to stop."""
        say(self._console, "stopping: the runs that go on save their checkpoints …")

    def looked(self, jobs: Sequence[Job]) -> None:
        """These runs go on."""
        if self._live is not None:
            self._live.update(Group(*(Text(printable(_where(job))) for job in jobs)))


def _where(job: Job) -> str:
    now = live.read(job.folder)
    if now is None:
        return f"  {job.name}: starting"
    speed = min((stage.images_per_second for stage in now.stages), default=0.0)
    return f"  {job.name}: step {now.step:,} of {now.steps:,}, {speed:,.0f} images/s"


def _outcome(job: Job, status: int) -> str:
    """How a run ended, in words."""
    if status < 0:
        return f"ended by {Signals(-status).name}"
    try:
        run = open_one(job.folder)
    except UserError:  # it ended before it had a folder
        return _failure(job, status)
    if run.status != "finished":
        return run.status if run.status == "interrupted" else _failure(job, status)
    accuracy, seconds = run.value("test_accuracy"), run.value("seconds", "total")
    figures = [f"test accuracy {accuracy:.2%}"] if accuracy is not None else []
    return ", ".join(["finished", *figures, duration(seconds)])


def _failure(job: Job, status: int) -> str:
    lines = job.log.read_text(errors="replace").splitlines()
    said = next((line for line in reversed(lines) if line.startswith("error: ")), f"exit status {status}")
    return f"failed, {said} See {job.log}"
