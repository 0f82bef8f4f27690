"""A sweep's points as runs: each checked as the run itself would be, before any has started."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.command_line.parse import names_config, parse_words, unknown
from launch.commands.train import checked
from launch.output.announce import untimed
from launch.output.kept import checkpoint_in
from launch.presets import PRESETS, load_plugins
from launch.sweep import record
from launch.sweep.grid import Point
from launch.sweep.processes import Job
from launch.sweep.record import Asked
from pipeline.config import build
from pipeline.config.build import build_run, num_stages
from pipeline.config.devices import local_devices, num_cores
from pipeline.config.settings import Settings
from pipeline.errors import UserError
from workers.where import where

CLUSTER = "cluster"
"""The kind of devices of runs that join a cluster: Ray finds them."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A point that can run.

    Attributes:
        kind: of the devices that it runs on: "cpu", "cuda" or ``CLUSTER``.
        devices: cores, or GPUs, that a run takes; of a cluster 1.
    """

    point: Point
    kind: str
    devices: int


def plan(asked: Asked) -> list[Planned]:
    """The points of a sweep.

    Raises:
        UserError, ResourcesError: as the first run would that cannot be; or two points are the same run.
    """
    load_plugins(asked.plugins)
    if not names_config(asked.arguments[0]) and asked.arguments[0] not in PRESETS:
        raise UserError(unknown(asked.arguments[0], PRESETS, "preset"))
    planned: list[Planned] = []
    seen: dict[str, Point] = {}
    for point in asked.grid.points():
        settings = checked(build.expand_baseline(parse_words(asked.words(point, asked.seeds[0])).run))
        same = seen.setdefault(repr(settings), point)
        if same is not point:
            raise UserError(f"--sweep: {same.name} and {point.name} are the same run. Leave one of them out.")
        planned.append(_planned(point, settings))
    return planned


def _planned(point: Point, settings: Settings) -> Planned:
    dataset = build.open_data(settings)
    settings = build.resolve(settings, dataset)
    pipe = settings.pipeline
    if where(settings.pipeline.ray_address).joined:
        return Planned(point=point, kind=CLUSTER, devices=1)
    devices = local_devices(pipe.device, pipe.threads, pipe.precision)
    build_run(untimed(settings), devices, dataset=dataset)
    stages = min(num_stages(settings, devices.count), devices.count)  # more of them take turns
    cores = min(stages * pipe.threads, num_cores())
    return Planned(point=point, kind=devices.kind, devices=cores if devices.kind == "cpu" else stages)


def numbers_of(kind: str, at_once: int | None) -> list[str]:
    """The devices of a kind, by what a process is told to see of them.

    Of a cluster, whose devices Ray hands out, places for ``at_once`` runs, one where that is not said.
    """
    if kind == CLUSTER:
        return [str(number) for number in range(at_once or 1)]
    if kind == "cpu":
        return [str(number) for number in range(num_cores())]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(local_devices("cuda", 1).count)]


def jobs_of(asked: Asked, planned: Sequence[Planned], folder: Path) -> list[Job]:
    """The runs that are not finished: those that were cut off from their checkpoints on.

    Raises:
        UserError: one goes on in another process.
    """
    jobs = []
    for row, of_point in zip(record.rows_of(folder, asked), planned, strict=True):
        for run in row.runs:
            path = folder / run.name
            if run.status == "finished":
                continue
            if run.status == "running":
                raise UserError(f"{path}: another process writes to it. Wait for its end, or stop it.")
            if checkpoint_in(path):
                arguments = ["resume", str(path)]
            else:
                if path.exists():  # of a run that came to nothing that can be gone on from
                    shutil.rmtree(path)
                arguments = [*asked.command(of_point.point, run.seed), "--run-dir", str(path)]
            jobs.append(
                Job(
                    name=run.name,
                    folder=path,
                    log=folder / f"{run.name}.log",
                    arguments=arguments,
                    kind=of_point.kind,
                    devices=of_point.devices,
                )
            )
    return jobs
