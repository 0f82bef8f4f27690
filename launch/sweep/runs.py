"""Many runs in one folder, each a process of its own: what each needs, which are still to be run, and their running.

What `launch PRESET --sweep …` and `launch reproduce` share.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from launch.commands.train import Interrupts
from launch.output.announce import untimed
from launch.output.going_on import lock_of
from launch.output.kept import checkpoint_in
from launch.output.saved_runs import SavedRun, open_one
from launch.signals import heard_by
from launch.sweep.processes import Devices, Job, Processes
from launch.sweep.progress import Progress
from pipeline.config import build
from pipeline.config.build import build_run, num_stages
from pipeline.config.devices import local_devices, num_cores
from pipeline.config.settings import Settings
from pipeline.data.loader import Dataset
from pipeline.errors import UserError
from workers.where import where

CLUSTER = "cluster"
"""The kind of devices of runs that join a cluster: Ray finds them."""

NOT_BEGUN, CUT_OFF = "not begun", "cut off"


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a run takes.

    Attributes:
        kind: of the devices that it runs on: "cpu", "cuda" or ``CLUSTER``.
        devices: cores, or GPUs, that it takes; of a cluster 1.
    """

    kind: str
    devices: int


def needs_of(settings: Settings, dataset: Dataset | None = None) -> Needs:
    """What a run needs, which is checked as the run itself would be.

    Args:
        dataset: what ``build.open_data`` gives for these settings, where the caller has it.

    Raises:
        UserError, ResourcesError: as the run would.
    """
    dataset = dataset if dataset is not None else build.open_data(settings)
    settings = build.resolve(settings, dataset)
    pipe = settings.pipeline
    if where(settings.pipeline.ray_address).joined:
        return Needs(kind=CLUSTER, devices=1)
    devices = local_devices(pipe.device, pipe.threads, pipe.precision)
    build_run(untimed(settings), devices, dataset=dataset)
    stages = min(num_stages(settings, devices.count), devices.count)  # more of them take turns
    cores = min(stages * pipe.threads, num_cores())
    return Needs(kind=devices.kind, devices=cores if devices.kind == "cpu" else stages)


def _numbers_of(kind: str, at_once: int | None) -> list[str]:
    """The devices of a kind, by what a process is told to see of them.

    Of a cluster, whose devices Ray hands out, places for ``at_once`` runs, one where that is not said.
    """
    if kind == CLUSTER:
        return [str(number) for number in range(at_once or 1)]
    if kind == "cpu":
        return [str(number) for number in range(num_cores())]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(local_devices("cuda", 1).count)]


def look(folder: Path) -> tuple[str, SavedRun | None]:
    """How far the run of a folder is: "running", "finished", … and what it left, where that can be read."""
    if not (folder / "config.json").is_file():
        return NOT_BEGUN, None
    try:
        run = open_one(folder)
    except UserError:  # it was cut off before it had written what it is, or is about to write that
        return CUT_OFF, None
    return run.status, run


def job_of(folder: Path, command: Sequence[str], needs: Needs) -> Job | None:
    """A run that is not finished: from its checkpoint on where it was cut off. None: it is.

    Args:
        command: what follows `launch` for the whole run, but for where it goes.

    Raises:
        UserError: it goes on in another process.
    """
    status, _ = look(folder)
    if status == "finished":
        return None
    if status == "running":
        raise UserError(f"{folder}: another process writes to it. Wait for its end, or stop it.")
    if checkpoint_in(folder):
        arguments = ["resume", str(folder)]
    else:
        if folder.exists():  # of a run that came to nothing that can be gone on from
            shutil.rmtree(folder)
        arguments = [*command, "--run-dir", str(folder)]
    log = folder.with_name(f"{folder.name}.log")
    return Job(name=folder.name, folder=folder, log=log, arguments=arguments, kind=needs.kind, devices=needs.devices)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Makes the folder, which is this process's alone within the block.

    Raises:
        UserError: it cannot be written, or another process writes to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_of(folder)
    except OSError as error:
        raise UserError(f"--run-dir {folder}: cannot be written ({error.strerror}). Choose another.") from error
    try:
        yield
    finally:
        lock.release()


def run_all(jobs: Sequence[Job], *, at_once: int | None, aside: Console, note: Callable[[], object]) -> bool:
    """Runs them, as many beside each other as there are devices for. Returns whether it was stopped before the end.

    Args:
        at_once: so many beside each other at most.
        aside: for progress.
        note: called when a run has ended.
    """
    interrupts = Interrupts()
    with heard_by(interrupts.hear), Progress(aside, len(jobs)) as progress:

        def ended(job: Job, status: int) -> None:
            progress.ended(job, status)
            note()

        interrupts.begun = True
        Processes(
            Devices({kind: _numbers_of(kind, at_once) for kind in {job.kind for job in jobs}}),
            at_once=at_once,
            began=progress.began,
            ended=ended,
            looked=progress.looked,
            stopping=progress.stopping,
            stopped=interrupts.asked.is_set,
        ).run(jobs)
    return interrupts.asked.is_set()
