"""`launch plan PRESET`: times a run's layers here, and predicts what a pipeline of them does on 1 to 64 devices."""

from __future__ import annotations

import json
import math
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from launch.balance import launched_stages, measured_site, take_profile
from launch.command_line.parse import FIRST, parse, preset_and_default, shortened, unknown
from launch.command_line.setting_names import as_flags
from launch.output.console import counted, say
from launch.output.progress import ProgressLine
from launch.plan.measure import Measurement, measure
from launch.plan.report import print_layers, print_measurements, print_predictions, verdict
from launch.presets import PRESETS
from pipeline.config import build, checks
from pipeline.config import settings as settings_module
from pipeline.config.devices import Devices, local_devices
from pipeline.config.partition import partition
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Settings
from pipeline.data.loader import Dataset
from pipeline.errors import UserError
from pipeline.planning.costs import LayerCost, Profile
from pipeline.planning.predict import Change, Planner, Prediction, Site
from workers.cluster import ray_cluster
from workers.where import where

_MOST_DEVICES = 64
_MOST_MEASURED = 4  # stages
_GIGA = 1e9


@dataclass(frozen=True, kw_only=True)
class PlanArguments:
    """What to plan: a run, and the devices it might have."""

    run: Settings
    devices: tuple[int, ...] = ()
    """Numbers of devices to predict for. Default: 1 to 64 in powers of two, and each number up to the layers'."""
    link: float | None = None
    """GB/s between two devices. Default: as between this machine's, or as measured between the hosts of a cluster."""
    delay: float | None = None
    """ms that a message is under way between two devices. Default: none, or as measured between a cluster's hosts."""
    measure: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also run the pipeline with 1, 2, 3 and 4 stages here, and show what is measured beside what is predicted."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder for plan.json, with every figure. Default: nothing is written."""


def plan(arguments: list[str], console: Console) -> None:
    """Runs the command.

    Raises:
        UserError: a mistake in what was asked.
        RunError: layers or pipeline could not be timed.
    """
    parsed = _parse(arguments)
    most = shortened(parsed.run).train.max_steps
    # Every step takes a whole batch, and all are alike.
    settings = replace(parsed.run, train=replace(parsed.run.train, max_steps=None, last_batch="drop"))
    if settings.baseline is not None:
        raise UserError(
            f"--baseline {settings.baseline}: the net is one piece to it, so there is nothing to plan. Leave it out."
        )
    checks.check(settings)
    with ProgressLine(console) as line:
        dataset = build.open_data(settings, progress=line.report)
    settings = build.resolve(settings, dataset)
    joins = settings.pipeline.executor == "ray" and where(settings.pipeline.ray_address).joined
    pipe = settings.pipeline
    with ExitStack() as stack:
        if joins:
            devices = stack.enter_context(ray_cluster(settings))
        else:
            devices = local_devices(pipe.device, pipe.threads, pipe.precision)
        site = _site(parsed, settings, devices, console)
        say(console, f"timing {counted(checks.num_layers(settings), 'layer')} …")
        made = _make(parsed, settings, dataset, devices, site)
        print_layers(console, made.spec, made.profile)
        print_predictions(console, made.rows, made.profile, made.spec)
        say(console, verdict(made.launched, made.changes))
        measured: list[Measurement] = []
        if parsed.measure:
            measured = _measure(made, settings, dataset, devices, console, most)
            print_measurements(console, measured)
    if parsed.out is not None:
        _write(parsed.out, made, measured, console)


def _parse(arguments: list[str]) -> PlanArguments:
    if not arguments:
        raise UserError("launch plan needs a preset, as in `launch plan cff-vit`. `launch list` shows them.")
    name, rest = ("cff-vit", arguments) if arguments[0].startswith("-") else (arguments[0], arguments[1:])
    if name not in PRESETS:
        raise UserError(unknown(name, PRESETS, "preset"))
    _, default, rest = preset_and_default(name, rest)
    parsed = parse(
        PlanArguments,
        rest,
        command=f"launch plan {name}",
        default=PlanArguments(run=default),
        about=str(__doc__).split(": ", 1)[1].capitalize(),
        first=("devices", "link", "delay", "measure", "out", *FIRST),
    )
    if any(count < 1 for count in parsed.devices):
        raise UserError(f"--devices {' '.join(map(str, parsed.devices))}: give numbers of at least 1.")
    if parsed.link is not None and not 0 < parsed.link < math.inf:
        raise UserError(f"--link {parsed.link:g}: GB/s between two devices, a number above 0.")
    if parsed.delay is not None and not 0 <= parsed.delay < math.inf:
        raise UserError(f"--delay {parsed.delay:g}: ms from one device to another, a number of at least 0.")
    if parsed.out is not None and parsed.out.exists() and not parsed.out.is_dir():
        raise UserError(f"--out {parsed.out}: is a file. Give a folder.")
    return parsed


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that was found out.

    Attributes:
        rows: balanced, one for each number of devices.
        launched: the run with its own stages and partition on the devices there are.
        changes: what would make that one faster.
    """

    spec: RunSpec
    profile: Profile
    planner: Planner
    site: Site
    rows: list[Prediction]
    launched: Prediction
    changes: list[Change]


def _make(parsed: PlanArguments, settings: Settings, dataset: Dataset, devices: Devices, site: Site) -> Plan:
    spec, profile = take_profile(settings, dataset, devices)
    # The profile's spec has one stage; what is planned has the run's own settings.
    spec = replace(
        spec, settings=replace(settings, pipeline=replace(settings.pipeline, device=spec.settings.pipeline.device))
    )
    planner = Planner(spec, profile)
    rows = []
    for count in parsed.devices or _counts(spec.num_layers):
        stages = planner.balanced(min(count, spec.num_layers))
        rows.append(planner.predict(stages, replace(site, devices=count)))
    stages = launched_stages(planner, settings, site)
    return Plan(
        spec=spec,
        profile=profile,
        planner=planner,
        site=site,
        rows=rows,
        launched=planner.predict(stages, site),
        changes=planner.changes(stages, site),
    )


def _counts(num_layers: int) -> list[int]:
    powers = [2**exponent for exponent in range(int(math.log2(_MOST_DEVICES)) + 1)]
    return sorted({*powers, *range(1, min(num_layers, _MOST_DEVICES) + 1)})


def _site(parsed: PlanArguments, settings: Settings, devices: Devices, console: Console) -> Site:
    """The devices, and what is between them as it is given, else as it is measured."""
    site = Site(devices=devices.count)
    if parsed.link is None or parsed.delay is None:
        site = measured_site(settings, devices)
    if site.link is not None:
        way = f"{site.link / _GIGA:.3g} GB/s, {site.delay * 1e3:,.3g} ms"
        say(console, f"between the cluster's hosts: {way}")
    return replace(
        site,
        link=site.link if parsed.link is None else parsed.link * _GIGA,
        delay=site.delay if parsed.delay is None else parsed.delay / 1e3,
    )


def _measure(
    made: Plan, settings: Settings, dataset: Dataset, devices: Devices, console: Console, max_steps: int | None
) -> list[Measurement]:
    """The real pipeline of 1, 2, 3 and 4 stages, on this machine or on the cluster that the run joins."""
    counts = range(1, min(made.spec.num_layers, _MOST_MEASURED) + 1)
    divided = [
        made.planner.balanced(count)
        if settings.pipeline.partition == "balanced"
        else partition(checks.num_layers(settings), count)
        for count in counts
    ]
    predicted = [made.planner.predict(stages, made.site) for stages in divided]
    return measure(settings, dataset, devices, predicted, console, max_steps=max_steps)


def _write(folder: Path, made: Plan, measured: list[Measurement], console: Console) -> None:
    values = {
        "format": 1,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "settings": settings_module.to_dict(made.spec.settings),
        "device": made.spec.device,
        "profile": {
            "alone": [_cost(cost) for cost in made.profile.alone],
            "busy": [_cost(cost) for cost in made.profile.busy],
            "num_busy": made.profile.num_busy,
            "jitter": made.profile.jitter,
            "feed_seconds": made.profile.feed_seconds,
            "copy_bandwidth": made.profile.copy_bandwidth,
            "link_bandwidth": made.profile.link_bandwidth,
            "took": made.profile.took,
        },
        "site": asdict(made.site),
        "predictions": [_prediction(row) for row in made.rows],
        "launched": _prediction(made.launched),
        "changes": [{"what": as_flags(change.what), "gain": change.gain} for change in made.changes],
        "measured": [
            {
                **_prediction(one.prediction),
                "measured": one.images_per_second,
                "rounds": list(one.rounds),
                "difference": one.difference,
                "measured_utilisation": list(one.utilisation),
            }
            for one in measured
        ],
    }
    file = folder / "plan.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror}). Give another folder.") from error
    say(console, f"every figure: {file}")


def _cost(cost: LayerCost) -> dict[str, Any]:
    seconds = {name: getattr(cost, name) for name in ("enter", "forward", "loss", "backward", "update")}
    sizes = {name: getattr(cost, name) for name in ("bytes_out", "weight_bytes", "optimizer_bytes", "activation_bytes")}
    return seconds | sizes


def _prediction(row: Prediction) -> dict[str, Any]:
    return {
        "devices": row.devices,
        "stages": [[layer + 1 for layer in layers] for layers in row.stages],
        "images_per_second": row.images_per_second,
        "speedup": row.speedup,
        "ideal": row.ideal,
        "fill": row.fill,
        "utilisation": list(row.utilisation),
        "memory": list(row.memory),
        "limit": str(row.limit),
    }
