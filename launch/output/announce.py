"""What a run is about to do, in a few lines: before it starts, or with `--dry-run` in place of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from launch.output.console import counted, say
from launch.output.data_lines import image_line
from launch.output.run_folder import check_room
from pipeline.config.build import build_run
from pipeline.config.devices import Devices
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Settings
from pipeline.data.index import UNLABELLED
from pipeline.data.loader import Dataset
from pipeline.runtime.initial import InitialWeights, begun
from workers.where import Where

BY_TEST = "the test images choose the epoch that is kept, so their accuracy says too much"
"""What ``--validation test`` does, wherever its figures are printed."""


def opening(settings: Settings, place: Where | None) -> str:
    """The first line: what is opened, and where Ray is. It names settings.

    Args:
        place: None for a run without Ray.
    """
    line = f"opening {settings.data.data}"
    if place is None:
        return f"{line} …"
    if not place.joined:
        return f"{line}, starting Ray …"
    return f"{line}, joining the Ray cluster at {place.address} ({place.why}) …"


def announce(console: Console, spec: RunSpec, dataset: Dataset) -> None:
    """What is trained on what, and how it is divided."""
    settings = spec.settings
    classes = counted(len(spec.classes), "class", "classes") if spec.classes != UNLABELLED else "without classes"
    say(
        console,
        f"{settings.preset}: {spec.net.describe()} on {spec.data_name}, {dataset.count('train'):,} training images, "
        f"{classes}; {counted(spec.epochs, 'epoch')}, batches of "
        f"{settings.train.batch_size:,}",
    )
    if len(spec.classes) < 2:
        say(console, "without two classes there are no readouts, no accuracy and no Fisher criterion")
    if len(spec.phases) > 1:
        groups = " | ".join(",".join(str(layer + 1) for layer in phase.layers) for phase in spec.phases)
        each = counted(settings.train.epochs, "epoch")
        say(console, f"one after the other: layers {groups}, {each} each; those that have learned are frozen")
    if (images := image_line(settings.net, dataset.index)) is not None:
        say(console, images)
    if settings.data.validation == "test":
        chosen = BY_TEST if settings.selected_on == "test" else "the test images choose nothing"
        say(console, f"{chosen}: all training images are trained on (--validation test)")
    if settings.data.label_noise:
        say(console, f"{settings.data.label_noise:.1%} of the training labels are wrong (--label-noise)")
    if settings.train.max_steps is not None:
        say(
            console,
            f"cut short after {counted(settings.train.max_steps, 'step')} (--max-steps or LOCALPIPE_MAX_STEPS): "
            "figures say only that it works",
        )
    if spec.initial is not None:
        too = any(name.startswith("rule.") for name in spec.initial[0])
        what = "its layers and classifier begin" if too else "its layers begin"
        say(console, f"{what} with the weights of {settings.train.init_from}")
    stages = " | ".join(",".join(str(layer + 1) for layer in layers) for layers in spec.stages)
    on = f"{spec.device} ({settings.pipeline.executor})"
    say(console, f"{counted(spec.num_stages, 'stage')} on {on}, layers {stages}")


def untimed(settings: Settings) -> Settings:
    """Settings that can be built as they are: where layers would be timed first, with an even partition."""
    if settings.pipeline.partition != "balanced":
        return settings
    return replace(settings, pipeline=replace(settings.pipeline, partition="even"))


def _parameters(spec: RunSpec) -> str:
    of_net, of_rules = spec.num_parameters()
    beside = f", {of_rules:,} more in their losses" if of_rules else ""
    return f"{of_net:,} parameters in {counted(spec.num_layers, 'layer')}{beside}"


def dry_run(
    settings: Settings,
    dataset: Dataset,
    devices: Devices,
    path: Path,
    console: Console,
    initial: InitialWeights | None = None,
) -> None:
    """Prints what would run; every check is the run's own.

    Args:
        settings: as ``build.resolve`` gives them.
        path: the run folder, which is not made.
        initial: what the layers would begin with, in place of random weights.

    Raises:
        UserError, ResourcesError: as the run would.
    """
    pipe, balanced = settings.pipeline, settings.pipeline.partition == "balanced"
    spec = begun(build_run(untimed(settings), devices, dataset=dataset), initial)
    check_room(spec, path)
    announce(console, spec, dataset)
    if balanced:
        say(console, "  the layers would be timed first, and divided anew so that the slowest stage is fastest")
    readout = settings.readout
    readouts = f", then {counted(readout.readout_epochs, 'epoch')} of readouts" if readout.mode == "after" else ""
    for line in (
        _parameters(spec),
        f"{counted(spec.steps_per_epoch, 'step')} an epoch, {spec.steps_per_epoch * spec.epochs:,} in all{readouts}",
        f"{counted(dataset.count('validate'), 'validation image')}, {counted(dataset.count('test'), 'test image')}",
        f"{devices.kind}: {counted(devices.count, 'device')} of {counted(pipe.threads, 'thread')}"
        if devices.kind == "cpu"
        else f"{counted(devices.count, 'GPU')}",
        f"data: {dataset.folder}",
        f"run folder: {path}",
    ):
        say(console, f"  {line}")
    say(console, "Nothing was started (--dry-run).")
