"""Timing a run's layers where its stages will work, and `--partition balanced`, which rests on it."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console

from launch.output.console import say
from pipeline.config import build, checks
from pipeline.config.build import build_run
from pipeline.config.devices import Devices
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Settings
from pipeline.data.loader import Dataset
from pipeline.errors import UserError
from pipeline.planning.predict import Planner, Site, listed, shown
from pipeline.planning.profile import Profile, profile_here
from workers.profiling import profile_cluster
from workers.where import where


def resolve_partition(settings: Settings, dataset: Dataset, devices: Devices, console: Console) -> Settings:
    """Settings with sizes in place of ``--partition balanced``; others as they are. Says what was decided.

    With ``--stages auto`` it decides the number of stages as well: the fewest that are within 2 % of the fastest.

    Raises:
        RunError: the layers could not be timed here.
    """
    pipe = settings.pipeline
    if pipe.partition != "balanced":
        return settings
    num_layers, most = checks.num_layers(settings), build.num_stages(settings, devices.count)
    if most == 1 or (pipe.stages != "auto" and most == num_layers):  # there is but one way
        return _with_sizes(settings, (num_layers // most,) * most)
    spec, profile = take_profile(settings, dataset, devices)
    planner, site = Planner(spec, profile), Site(devices=devices.count)
    stages = planner.choose(site) if pipe.stages == "auto" else planner.balanced(pipe.stages)
    prediction = planner.predict(stages, site)
    say(
        console,
        f"timed {num_layers} layers in {profile.took:.0f} s: layers {shown(stages)} (--partition {listed(stages)}), "
        f"{prediction.images_per_second:,.0f} images/s predicted, limited by {prediction.limit}",
    )
    return _with_sizes(settings, tuple(len(layers) for layers in stages))


def _with_sizes(settings: Settings, sizes: tuple[int, ...]) -> Settings:
    return replace(settings, pipeline=replace(settings.pipeline, partition=sizes, stages=len(sizes)))


def take_profile(settings: Settings, dataset: Dataset, devices: Devices) -> tuple[RunSpec, Profile]:
    """Times the layers of a resolved run on these devices: in processes of this machine, or on the cluster it joins.

    Returns the run as a single stage, for which it was done, and what it gave.

    Raises:
        UserError: the layers do not learn at the same time.
        RunError: the layers could not be timed.
    """
    whole = replace(settings.pipeline, stages=1, partition="even")
    spec = build_run(replace(settings, pipeline=whole), devices, dataset=dataset)
    if len(spec.phases) > 1:
        raise UserError(
            f"{settings.method.kind} trains layers one after the other, and what can be timed and predicted is layers "
            "that learn at the same time. Use --partition even, or give the layers of each stage."
        )
    if settings.pipeline.executor == "ray" and where(settings.pipeline.ray_address).joined:
        return spec, profile_cluster(spec, devices)
    # GPUs do not slow each other down; stages beyond the layers there are would have nothing to do.
    num_busy = min(devices.count, spec.num_layers) if devices.kind == "cpu" else 1
    return spec, profile_here(spec, num_busy)
