"""What is decided by measuring, where a run's stages will work: `--partition balanced` and `--queue-depth auto`."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from rich.console import Console

from launch.output.console import say
from pipeline.config import build, checks
from pipeline.config.build import build_run
from pipeline.config.devices import Devices
from pipeline.config.partition import partition, sized
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import NEAR_DEPTH, Settings
from pipeline.data.loader import Dataset
from pipeline.errors import UserError
from pipeline.planning.costs import Profile
from pipeline.planning.predict import Planner, Site, Stages, listed, shown
from pipeline.planning.profile import profile_here
from workers.profiling import profile_cluster
from workers.where import where

_NEAR = 1e-3  # seconds one way, which a queue of NEAR_DEPTH hides at any step that is worth a stage


def resolve_measured(settings: Settings, dataset: Dataset, devices: Devices, console: Console) -> Settings:
    """Settings with numbers in place of ``--partition balanced`` and ``--queue-depth auto``; others as they are. Says
    what was decided.

    With ``--stages auto`` a balanced partition decides the number of stages as well: the fewest that are within 2 % of
    the fastest.

    Raises:
        ResourcesError: a channel between two hosts does not work.
        RunError: the layers could not be timed here.
    """
    timed = _Timed(settings, dataset, devices)
    site = Site(devices=devices.count)
    if settings.pipeline.queue_depth == "auto":
        site = measured_site(settings, devices)
    settings = _resolve_partition(settings, timed, site, console)
    return _resolve_depth(settings, timed, site, console)


class _Timed:
    """The layers' times, taken once and only if they are asked for."""

    def __init__(self, settings: Settings, dataset: Dataset, devices: Devices) -> None:
        self._settings, self._dataset, self.devices = settings, dataset, devices

    @cached_property
    def _taken(self) -> tuple[RunSpec, Profile]:
        return take_profile(self._settings, self._dataset, self.devices)

    @property
    def planner(self) -> Planner:
        return Planner(*self._taken)

    @property
    def seconds(self) -> float:
        """That it took."""
        return self._taken[1].took


def measured_site(settings: Settings, devices: Devices) -> Site:
    """The devices, and what is between them: as measured between the hosts of a cluster of several.

    Raises:
        ResourcesError: a channel between two hosts does not work.
    """
    if settings.pipeline.executor == "ray" and where(settings.pipeline.ray_address).joined:
        from workers.channels import link_between_hosts  # noqa: PLC0415 (it imports Ray)

        link = link_between_hosts("cuda" if devices.kind == "cuda" else "cpu")
        if link is not None:
            return Site(
                devices=devices.count, link=link.bytes_per_second, delay=link.delay, paced=link.control == "bbr"
            )
    return Site(devices=devices.count)


def _resolve_partition(settings: Settings, timed: _Timed, site: Site, console: Console) -> Settings:
    pipe = settings.pipeline
    if pipe.partition != "balanced":
        return settings
    num_layers, most = checks.num_layers(settings), build.num_stages(settings, site.devices)
    if most == 1 or (pipe.stages != "auto" and most == num_layers):  # there is but one way
        return _with_sizes(settings, (num_layers // most,) * most)
    planner = timed.planner
    stages = planner.choose(site) if pipe.stages == "auto" else planner.balanced(pipe.stages)
    prediction = planner.predict(stages, site)
    say(
        console,
        f"timed {num_layers} layers in {timed.seconds:.0f} s: layers {shown(stages)} (--partition {listed(stages)}), "
        f"{prediction.images_per_second:,.0f} images/s predicted, limited by {prediction.limit}",
    )
    return _with_sizes(settings, tuple(len(layers) for layers in stages))


def _resolve_depth(settings: Settings, timed: _Timed, site: Site, console: Console) -> Settings:
    if settings.pipeline.queue_depth != "auto":
        return settings
    count = build.num_stages(settings, site.devices)
    depth = NEAR_DEPTH
    if site.delay <= _NEAR or count == 1:
        say(console, f"no message between stages is long under way: --queue-depth {depth}")
    else:
        stages = launched_stages(timed.planner, settings, site)
        depth = timed.planner.choose_depth(stages, site)
        say(
            console,
            f"messages between hosts are {site.delay * 1e3:,.0f} ms under way: --queue-depth {depth}, "
            f"{timed.planner.rate(stages, site, depth=depth):,.0f} images/s predicted",
        )
    return replace(settings, pipeline=replace(settings.pipeline, queue_depth=depth))


def launched_stages(planner: Planner, settings: Settings, site: Site) -> Stages:
    """The stages that `launch PRESET` with the same flags would have."""
    pipe = settings.pipeline
    if isinstance(pipe.partition, tuple):
        return sized(pipe.partition)
    if pipe.partition == "balanced" and pipe.stages == "auto" and pipe.executor != "serial":
        return planner.choose(site)
    count = build.num_stages(settings, site.devices)
    return planner.balanced(count) if pipe.partition == "balanced" else partition(checks.num_layers(settings), count)


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
            "that learn at the same time. Use --partition even or give the layers of each stage, and --queue-depth a "
            "number."
        )
    if settings.pipeline.executor == "ray" and where(settings.pipeline.ray_address).joined:
        return spec, profile_cluster(spec, devices)
    # GPUs do not slow each other down; stages beyond the layers there are would have nothing to do.
    num_busy = min(devices.count, spec.num_layers) if devices.kind == "cpu" else 1
    return spec, profile_here(spec, num_busy)
