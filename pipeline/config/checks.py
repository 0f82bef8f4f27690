"""Refuses what no data set and no machine could make right, before anything is opened."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pipeline.config.interval import read_interval
from pipeline.config.partition import partition
from pipeline.config.settings import PipelineSettings, Settings, TrainSettings
from pipeline.data import prepare
from pipeline.errors import UserError, shortened
from pipeline.methods import MethodConfig
from pipeline.nets import NetConfig
from pipeline.nets.limits import DEEPEST

_LARGEST, _LARGEST_SEED = 2**31 - 1, 2**63 - 1
_MOST_EPOCHS = 1_000_000
MOST_AT_ONCE = 1024
"""Threads of a stage, or messages that wait between two, at most."""
MOST_TRACED, MOST_PROFILED = 10_000, 100
"""Steps of a trace, and of a profile: of each step the one has some ten slices of a layer, the other some hundreds."""

_MOST_OPERATIONS = 100  # of RandAugment; papers have 2 or 3
_LONGEST = 10_000_000  # seconds: four months
_MOST_MEMORY = 1 << 20  # GiB
_MOST_KEPT = 1_000_000  # checkpoints, or restarts


def check_data(settings: Settings) -> None:
    """Refuses at once data that are not there, before anything is opened or started. Raises UserError."""
    data = settings.data
    check_integers(data)
    _between(0, _MOST_MEMORY, "`memory_budget`", data.memory_budget)
    _at_least(1, "`shuffle_window`", data.shuffle_window)
    if data.validation != "test" and not 0 < data.validation < 1:
        raise UserError(
            f"`validation` {data.validation}: must lie between 0 and 1, both excluded, or be test. "
            "The weights of the best validation loss are the ones kept."
        )
    prepare.check(data.data, data_dir=data_dir(settings), image_size=data.image_size)


def data_dir(settings: Settings) -> Path | None:
    return Path(settings.data.data_dir) if settings.data.data_dir else None


def check(settings: Settings) -> None:
    """Refuses values that no data set could make right. Raises UserError."""
    train, readout, pipe = settings.train, settings.readout, settings.pipeline
    check_integers(settings)
    check_layers(settings.net)
    settings.method.check()
    if (count := num_layers(settings)) > 0:  # else the net says what is wrong with it, once it knows the images
        _check_method(settings.method, count)
    _between(1, _MOST_EPOCHS, "`epochs`", train.epochs)
    if train.max_steps is not None:
        _at_least(1, "`max_steps`", train.max_steps)
    if train.batch_size < 2:
        raise UserError(
            f"`batch_size` {train.batch_size}: a contrastive loss compares images with each other. Give at least 2."
        )
    if not 0 < train.lr < math.inf:
        raise UserError(f"`lr` {train.lr}: must be above 0.")
    _at_least(0, "`weight_decay`", train.weight_decay)
    _check_optimizer(train, settings.method)
    if list(train.milestones) != sorted(set(train.milestones)) or any(m < 1 for m in train.milestones):
        given = " ".join(str(m) for m in train.milestones)
        raise UserError(f"`milestones` {given}: epochs of at least 1, each above the one before.")
    if not 0 < train.lr_decay <= 1:
        raise UserError(f"`lr_decay` {train.lr_decay}: must be above 0 and at most 1.")
    predicts = settings.method.predicts()
    if readout.mode == "none" and not predicts and settings.method.needs_labels:
        raise UserError(
            f"`readout.mode` none: layers trained by {settings.method.kind} do not predict by themselves. "
            "Use `readout.mode` after or `readout.mode` online."
        )
    if readout.mode == "online" and not settings.method.online_readouts:
        raise UserError(
            f"`readout.mode` online: layers trained by {settings.method.kind} do not see, while they learn, what a "
            f"readout is to see. Use `readout.mode` after{' or `readout.mode` none' if predicts else ''}."
        )
    if train.keep == "accuracy" and readout.mode != "online" and not predicts:
        raise UserError(
            "`keep` accuracy needs a prediction while the layers learn. Use `readout.mode` online, or `keep` loss."
        )
    if readout.readout_lr != "lr" and not 0 < readout.readout_lr < math.inf:
        raise UserError(f"`readout_lr` {readout.readout_lr}: must be above 0.")
    if readout.mode == "after":
        _between(1, _MOST_EPOCHS, "`readout_epochs`", readout.readout_epochs)
    shares = readout.readout_milestones
    if list(shares) != sorted(set(shares)) or not all(0 < share < 1 for share in shares):
        given = " ".join(str(share) for share in shares)
        raise UserError(
            f"`readout_milestones` {given}: shares of the epochs, above 0 and below 1, each above the last."
        )
    _at_least(0, "`readout_weight_decay`", readout.readout_weight_decay)
    if not 0 <= readout.readout_dropout < 1:
        raise UserError(f"`readout_dropout` {readout.readout_dropout}: a share from 0 to below 1.")
    for name, value in (("`queue_depth`", pipe.depth), ("`threads`", pipe.threads)):
        _between(1, MOST_AT_ONCE, name, value)
    _at_least(0, "`feeders`", pipe.feeders)
    _between(0, _MOST_OPERATIONS, "`randaugment_ops`", settings.augment.randaugment_ops)
    for name, seconds in (
        ("`stall_timeout`", pipe.stall_timeout),
        ("`resource_timeout`", pipe.resource_timeout),
        ("`log_every`", settings.log_every),
    ):
        _between(0.1, _LONGEST, name, seconds)
    saving = settings.checkpoint
    read_interval(saving.checkpoint_every)
    _between(1, _MOST_KEPT, "`keep_checkpoints`", saving.keep_checkpoints)
    _between(0, MOST_TRACED, "`trace`", settings.trace)
    _between(0, MOST_PROFILED, "`profile`", settings.profile)
    _between(0, _LONGEST, "`stop_timeout`", saving.stop_timeout)
    _between(0, _MOST_KEPT, "`max_restarts`", saving.max_restarts)
    if pipe.stages != "auto":
        partition(num_layers(settings), pipe.stages)
    if isinstance(pipe.partition, tuple):
        _check_sizes(pipe.partition, num_layers(settings), pipe)
    if pipe.executor == "serial" and pipe.stages not in ("auto", 1):
        raise UserError(
            f"`executor` serial has one stage, not {pipe.stages}. Leave `stages` out, or use `executor` ray."
        )
    if pipe.executor == "serial" and pipe.data_on == "device":
        raise UserError(
            "`data_on` device: `executor` serial, the reference, takes every batch from the host. Use `data_on` auto, "
            "or `executor` ray or threads."
        )


def _check_optimizer(train: TrainSettings, method: MethodConfig) -> None:
    """Refuses an optimizer or a schedule that cannot be. Raises UserError."""
    if not 0 <= train.sgd_momentum < 1:
        raise UserError(f"`sgd_momentum` {train.sgd_momentum}: must be at least 0 and below 1.")
    _between(0, _MOST_EPOCHS, "`warmup_epochs`", train.warmup_epochs)
    if train.lr_schedule == "cosine" and train.milestones:
        raise UserError(
            "`lr_schedule` cosine: learning rates fall along a cosine, not at `milestones`. Leave `milestones` out, or "
            "use `lr_schedule` milestones."
        )
    if train.optimizer != "adamw" and type(method).optimizer is not MethodConfig.optimizer:
        raise UserError(
            f"`optimizer` {train.optimizer}: {method.kind} has an optimizer of its own. Leave `optimizer` out."
        )


def check_trace(trace: int, profile: int, executor: str) -> None:
    """Refuses a trace where nothing can be traced, or profiled. Raises UserError."""
    if executor == "serial" and (trace or profile):
        raise UserError("`executor` serial has no stages to trace. Use `executor` ray or threads.")
    if profile and executor != "ray":
        raise UserError(
            f"`profile` {profile}: PyTorch's profiler sees one thread of a process, and `executor` {executor} has all "
            "stages in one. Use `executor` ray, or trace without it."
        )


def check_integers(settings: Any) -> None:
    """Refuses integers that fit no word of a machine, in a dataclass of settings and in those that it holds.

    Raises:
        UserError: naming the first.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            check_integers(value)
        most = _LARGEST_SEED if field.name == "seed" else _LARGEST
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and not -most <= number <= most:
                sign = "below -" if number < 0 else "above "
                raise UserError(f"`{field.name}` {shortened(number)}: is {sign}{most:,}. Give a smaller number.")


def check_layers(net: NetConfig) -> None:
    """Refuses a net of more layers than can be built, before anything counts them one by one. Raises UserError."""
    if net.num_layers > DEEPEST:
        name = "`depth`" if hasattr(net, "depth") else f"net {net.kind}"
        raise UserError(f"{name} {shortened(net.num_layers)}: a net has at most {DEEPEST:,} layers. Give fewer.")


def _check_method(method: MethodConfig, count: int) -> None:
    """Refuses answers of a method that contradict each other: a mistake of whoever wrote it."""
    phases = method.phases(count)
    if [layer for phase in phases for layer in phase] != list(range(count)) or not all(phases):
        raise UserError(
            f"method {method.kind}: its phases are {', '.join(map(str, phases)) or 'none'}, and they must take the "
            f"{count} layers in order, each once. Mend its phases()."
        )
    if len(phases) > 1 and method.shared_versions(count, 1) is not None:
        raise UserError(
            f"method {method.kind}: layers that share a state, such as label embeddings, learn at the same time. Use "
            "one phase, or a state of each layer's own."
        )
    for reader in range(count):
        seen = method.readout_inputs(reader, count)
        if not seen or not set(seen) <= set(range(reader + 1)) or len(set(seen)) < len(seen):
            raise UserError(
                f"method {method.kind}: the readout of layer {reader} sees the layers {seen}, and it can see itself "
                f"and those before it, each once. Mend its readout_inputs()."
            )


def _check_sizes(sizes: tuple[int, ...], num_layers: int, pipe: PipelineSettings) -> None:
    """Refuses sizes of stages that do not fit the net, or what else is asked of its stages."""
    given = f"`partition` {listed(sizes)}"
    if sum(sizes) != num_layers or min(sizes, default=0) < 1:
        raise UserError(
            f"{given}: these are {sum(sizes)} layers, this net has {num_layers}. "
            f"Give the layers of each stage, at least 1, that add up to {num_layers}."
        )
    if pipe.executor == "serial" and len(sizes) > 1:
        raise UserError(f"{given}: `executor` serial has one stage. Use `partition` even, or `executor` ray.")
    if pipe.stages not in ("auto", len(sizes)):
        raise UserError(
            f"{given} has {len(sizes)} stage{'s' if len(sizes) > 1 else ''} and `stages` asks for {pipe.stages}. "
            f"Leave one of them out, or give `partition` even."
        )


def num_layers(settings: Settings) -> int:
    """Layers of the net that the method trains."""
    return settings.method.adapt(settings.net).num_layers


def listed(sizes: tuple[int, ...]) -> str:
    return " ".join(str(size) for size in sizes)


def _at_least(low: float, name: str, value: float) -> None:
    if not low <= value < math.inf:
        raise UserError(f"{name} {value}: must be a number of at least {low:g}.")


def _between(low: float, high: int, name: str, value: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{name} {value}: must be a number of at least {low:g} and at most {high:,}.")
