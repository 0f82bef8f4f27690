"""Timing a run's layers where its stages will work, and `--partition balanced`, which rests on it."""

from __future__ import annotations

import time
from dataclasses import replace

import ray
import torch
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from rich.console import Console

from launch.console import say
from pipeline import profiling, resolve
from pipeline.data.loader import Dataset
from pipeline.errors import ResourcesError, RunError
from pipeline.planning import Planner, Site, listed, shown
from pipeline.profiling import Profile, Sample
from pipeline.resolve import Devices
from pipeline.settings import Settings
from pipeline.spec import RunSpec
from workers.cluster import joins_cluster

_TIMING = 300.0  # seconds that a cluster's devices may take to time the layers


def settle_partition(settings: Settings, dataset: Dataset, devices: Devices, console: Console) -> Settings:
    """Settings with sizes in place of ``--partition balanced``; others as they are. Says what was decided.

    With ``--stages auto`` it settles the number of stages as well: the fewest that are within 2 % of the fastest.

    Raises:
        RunError: the layers could not be timed here.
    """
    pipe = settings.pipeline
    if pipe.partition != "balanced":
        return settings
    num_layers, most = resolve.num_layers(settings), resolve.num_stages(settings, devices.count)
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
        RunError: the layers could not be timed.
    """
    whole = replace(settings.pipeline, stages=1, partition="even")
    spec = resolve.place(replace(settings, pipeline=whole), dataset, devices)
    if settings.pipeline.executor == "ray" and joins_cluster(settings):
        return spec, _profile_cluster(spec, devices)
    # GPUs do not slow each other down; stages beyond the layers there are would have nothing to do.
    num_busy = min(devices.count, spec.num_layers) if devices.kind == "cpu" else 1
    return spec, profiling.profile_here(spec, num_busy)


def _profile_cluster(spec: RunSpec, devices: Devices) -> Profile:
    """Times the layers on as many of the cluster's devices at once as stages could use."""
    begun = time.perf_counter()
    pipe = spec.settings.pipeline
    gpus, cores = (1.0, 0.0) if devices.kind == "cuda" else (0.0, float(pipe.threads))
    # A process that has timed once ends: it would keep its GPU's memory.
    task = ray.remote(max_calls=1, num_gpus=gpus, num_cpus=cores)(_profile_device)
    running = [task.remote(spec) for _ in range(min(devices.count, spec.num_layers))]
    try:
        samples: list[Sample] = ray.get(running, timeout=pipe.resource_timeout + _TIMING)
    except GetTimeoutError as error:
        for one in running:
            ray.cancel(one, force=True)
        raise ResourcesError(
            f"the cluster's devices did not time the layers within {pipe.resource_timeout + _TIMING:g} s. Free some, "
            "or give the layers of each stage, such as --partition 2 2."
        ) from error
    except RayError as error:
        if isinstance(error, RayTaskError) and isinstance(error.cause, RunError):
            raise error.cause from error
        raise RunError(f"timing the layers on the cluster failed: {str(error).splitlines()[-1]}") from error
    profile = profiling.joined(samples, spec)
    return replace(profile, feed_seconds=profiling.time_feed(spec), took=time.perf_counter() - begun)


def _profile_device(spec: RunSpec) -> Sample:
    """Times the layers on the device that Ray gives this task."""
    return profiling.profile(spec, torch.device(spec.device))
