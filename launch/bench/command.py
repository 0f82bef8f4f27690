"""`launch bench`: from its flags to its report."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console

from launch.bench.ablation import ablate
from launch.bench.accuracy import Curve, curves, times_to
from launch.bench.arguments import DEFAULT, BenchArguments, brief, check, output_folder
from launch.bench.conclusion import FeederRate, conclude
from launch.bench.entries import NAMES, BenchProtocol, Entry, compete, field_of, idle_devices, stages_needed
from launch.bench.feeding import FeederSpeed, feeder_speed
from launch.bench.figures import Figures, figures_of
from launch.bench.memory import memory
from launch.bench.ours import BY_PRESET, PipelineRunner, rows_of
from launch.bench.report import print_report, write_report
from launch.command_line.parse import parse, peek, unknown
from launch.output import console as console_module
from launch.output.progress import ProgressLine
from launch.output.run_folder import command_line
from launch.output.summary import machine
from launch.presets import PRESETS
from pipeline.config import build, checks
from pipeline.config import settings as settings_module
from pipeline.config.devices import Devices, local_devices, num_cores
from pipeline.config.settings import Settings
from pipeline.errors import UserError
from pipeline.nets import VitSettings
from pipeline.planning.ideal import fill
from workers.cluster import ray_cluster

_PAPER = BenchArguments(
    settings=replace(DEFAULT, net=VitSettings(dim=128, heads=4, depth=2)),
    only=("backprop", "dataparallel", "ddp", "cff-serial-1", "cff-1"),
)

_FIRST = (
    *("preset", "rounds", "steps", "devices", "only", "without", "source", "to-accuracy", "ablate", "out"),
    *("data", "batch-size", "dim", "heads", "depth", "threads", "precision", "compile", "graphs", "device"),
)

_BUSY = 0.3  # of the cores, by the load of the last minute

_ABOUT = f"""The pipeline beside what people use today: backprop on one device, DataParallel, DDP, GPipe and 1F1B, on
the same devices, batch, model, precision and allocator settings. Rows take turns; figures are medians over rounds.

Rows: {", ".join(NAMES)}.

launch bench --preset NAME: the same with a preset's net, method, data and batch. Our rows: {" and ".join(BY_PRESET)}.
Pipelines are cut by the measured times of the layers, ours and backprop's each by its own, unless --partition says
where.

launch bench paper: the experiment of Aghagolzadeh & Ezoji 2025, ViT[128 4 2], one-forward, two stages,
against backprop.

launch bench --ablate: what each optimisation gives to one process.

launch bench memory: peak memory of a stage, of the serial loop and of backprop, by depth.

launch bench transport: what a message between two stages costs, by channel."""


def bench(arguments: list[str], console: Console) -> None:
    """Runs `launch bench` with these arguments.

    Raises:
        UserError: a flag is wrong, or the data are not there.
        KeyboardInterrupt: stopped by hand, after what was measured has been reported.
    """
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name == "transport":
        from launch.bench.transport import transport  # noqa: PLC0415 (it shares nothing with the contest)

        transport(rest, console)
        return
    if name == "memory":
        memory(rest, console)
        return
    if name and not name.startswith("-") and name != "paper":
        raise UserError(f"launch bench {name}: there is paper, memory and transport, or no name at all, then flags.")
    paper = name == "paper"
    preset = peek(arguments, "--preset")
    if preset is not None and (paper or "--ablate" in arguments):
        other = "launch bench paper" if paper else "--ablate"
        raise UserError(f"--preset {preset}: {other} measures CFF on ViT alone. Leave one of the two out.")
    asked = parse(
        BenchArguments,
        rest if paper else arguments,
        command="launch bench paper" if paper else "launch bench",
        default=_PAPER if paper else _defaults(preset, peek(arguments, "--data")),
        about=_ABOUT,
        first=_FIRST,
    )
    asked = brief(asked)
    if asked.ablate:
        threads_given = any(flag == "--threads" or flag.startswith("--threads=") for flag in arguments)
        ablate(asked, console, threads_given=threads_given)
    else:
        _contest(asked, console, paper=paper)


def _defaults(preset: str | None, data: str | None) -> BenchArguments:
    """What flags start from. Raises UserError: there is no such preset."""
    if preset is None:
        return BenchArguments()
    if preset not in PRESETS:
        raise UserError(f"--preset {preset}: {unknown(preset, PRESETS, 'preset')}")
    settings = PRESETS[preset].settings_for(data)
    # Few nets have layers that all take as long: an even partition would hold back whoever is pipelined.
    settings = replace(settings, pipeline=replace(settings.pipeline, partition="balanced"))
    return BenchArguments(settings=settings, preset=preset)


@dataclass(kw_only=True)
class _Outcome:
    """What there is to report, as far as the contest came."""

    entries: list[Entry] = field(default_factory=list)
    feeder: FeederSpeed | None = None
    curves: list[Curve] = field(default_factory=list)
    stopped: bool = False


def _contest(asked: BenchArguments, console: Console, *, paper: bool) -> None:
    names = check(asked)
    # A cluster's other nodes would not be the same devices.
    settings = replace(
        asked.settings,
        train=replace(asked.settings.train, last_batch="drop"),  # every measured step takes a whole batch
        pipeline=replace(asked.settings.pipeline, ray_address="local", executor="ray"),
    )
    checks.check(settings)
    folder = output_folder(asked.out, "bench", run_dir=asked.settings.run_dir)
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    pipe = settings.pipeline
    devices = local_devices(pipe.device, pipe.threads, pipe.precision)
    there = devices.count
    devices = Devices(devices.kind, asked.devices or there)

    def say(sentence: str) -> None:
        console_module.say(console, sentence)

    with ProgressLine(console) as line:
        dataset = build.open_data(settings, progress=line.report)
    title = _title(settings, dataset.index.name, devices)
    say(title)
    load = os.getloadavg()[0]
    if load > _BUSY * num_cores():
        say(f"Other programs use this machine (load {load:.1f}): the figures will be lower and spread wider.")
    if devices.count > there:
        say(f"--devices {devices.count}: there are {there}. They take turns, which tells little of {devices.count}.")
    if devices.count < 2:
        say("One device: rows that need two cannot run; --devices 2 lets two share it.")
    idle = idle_devices(settings, devices)
    if idle is not None:
        say(idle)
    protocol = BenchProtocol(
        settings=settings,
        rows=rows_of(asked.preset),
        dataset=dataset,
        devices=devices,
        warm=asked.warm,
        steps=asked.steps,
        console=console,
    )
    outcome = _Outcome(entries=field_of(protocol, names, asked.source))
    with ExitStack() as stack:
        try:
            _measure(asked, protocol, names, outcome, stack, say)
        except KeyboardInterrupt:
            outcome.stopped = True
            say("Stopped by hand. What was measured until here:")
    batch = settings.train.batch_size
    rows = figures_of(outcome.entries, batch)
    times = times_to(rows, outcome.curves)
    steps_per_epoch = dataset.num_batches("train", batch)
    conclusion = conclude(
        rows,
        feeder=_against_need(outcome, rows),
        paper=paper,
        num_rounds=asked.rounds,
        steps_per_epoch=steps_per_epoch,
    )
    print_report(console, title, rows, times, conclusion)
    write_report(
        folder,
        title=title,
        facts={
            "command": command_line(),
            "started": started,
            "stopped": outcome.stopped,
            "settings": settings_module.to_dict(settings),
            "machine": machine() | {"environment": _environment(), "load_before": load},
            "devices": {"kind": devices.kind, "count": devices.count, "threads": settings.pipeline.threads},
            "rounds": asked.rounds,
            "steps": asked.steps,
            "warm": asked.warm,
            "fill_of_an_epoch": {str(n): fill(steps_per_epoch, n) for n in range(1, devices.count + 1)},
            "feeder_images_per_second": None if outcome.feeder is None else vars(outcome.feeder),
            "curves": [vars(curve) for curve in outcome.curves],
        },
        entries=outcome.entries,
        rows=rows,
        times=times,
        conclusion=conclusion,
    )
    say(f"report: {folder}")
    if outcome.stopped:
        raise KeyboardInterrupt


def _measure(
    asked: BenchArguments, protocol: BenchProtocol, names: Sequence[str], outcome: _Outcome, stack: ExitStack, say: Any
) -> None:
    """The feeder alone, the contest, then learning curves; whatever is done is in ``outcome`` at once."""
    ours = [e.runner for e in outcome.entries if isinstance(e.runner, PipelineRunner)]
    if ours:
        outcome.feeder = feeder_speed(protocol.settings, protocol.dataset)
    if ours or asked.to_accuracy is not None:
        pipe = protocol.settings.pipeline
        # A private cluster takes as many stages as it is told of; all rows' actors live at once.
        stages = max(stages_needed(outcome.entries), protocol.devices.count)
        pipe = replace(pipe, stages=stages, partition="even")
        stack.enter_context(ray_cluster(replace(protocol.settings, pipeline=pipe)))
    compete(outcome.entries, rounds=asked.rounds, steps=asked.steps, say=say)
    if asked.to_accuracy is not None:
        curves(
            protocol.settings,
            protocol.devices,
            names,
            protocol.rows,
            accuracy=asked.to_accuracy / 100,
            max_epochs=asked.max_epochs,
            learned=outcome.curves,
            console=protocol.console,
        )


def _against_need(outcome: _Outcome, rows: Sequence[Figures]) -> FeederRate | None:
    pipelines = [row.images_per_second for row in rows if row.ideal is not None and row.images_per_second]
    if outcome.feeder is None or not pipelines:
        return None
    return FeederRate(speed=outcome.feeder, needed=max(pipelines))


def _title(settings: Settings, data: str, devices: Devices) -> str:
    pipe = settings.pipeline
    kind = f"CPU device{'s' if devices.count > 1 else ''} of {pipe.threads} thread{'s' if pipe.threads > 1 else ''}"
    where = f"{devices.count} {kind if devices.kind == 'cpu' else 'GPU' + ('s' if devices.count > 1 else '')}"
    compiled = ", compiled" if pipe.compile == "on" else ""
    net = settings.method.adapt(settings.net)
    return f"{net.describe()} on {data}, batch {settings.train.batch_size}, {pipe.precision}{compiled}, {where}"


def _environment() -> dict[str, str]:
    """Variables that change how fast things are."""
    known = ("OMP_", "MKL_", "KMP_", "MALLOC_", "LD_PRELOAD", "CUDA_", "TORCH", "NCCL_")
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(known)}
