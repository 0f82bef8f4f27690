"""From what a person asked for to a run that can start: every "auto" settled, every mistake found first."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from pipeline.compiled import check_compiler
from pipeline.data import prepare
from pipeline.data.augment import AugmentConfig
from pipeline.data.loader import Dataset
from pipeline.data.registry import DATASETS
from pipeline.data.sources.base import Progress
from pipeline.errors import ResourcesError, UserError
from pipeline.rules import BaselineSettings
from pipeline.schedule import partition, sized
from pipeline.settings import PipelineSettings, Settings, Transport
from pipeline.shapes import layer_features
from pipeline.spec import RunSpec


@dataclass(frozen=True)
class Devices:
    """What stages can be placed on. A CPU device is ``threads`` cores."""

    kind: str
    count: int


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_devices(wanted: str, threads: int) -> Devices:
    """This machine's devices. ``wanted`` is "auto", "cpu" or "cuda".

    Raises:
        ResourcesError: CUDA is asked for and not there.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        build = "this PyTorch is built without CUDA" if torch.version.cuda is None else "no GPU answers"
        raise ResourcesError(f"--device cuda: {build}. Use --device cpu, or install a CUDA build of PyTorch.")
    if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()):
        return Devices("cuda", torch.cuda.device_count())
    return Devices("cpu", max(1, num_cores() // threads))


def open_data(settings: Settings, *, progress: Progress | None = None) -> Dataset:
    """Opens and checks the data set; prepares the embedded one and folders of images on the way.

    Args:
        progress: called with (what, done, total) while a folder is prepared.

    Raises:
        UserError: unknown or damaged data, fewer images than one batch.
    """
    data = settings.data
    check_data(settings)
    folder = prepare.resolve(
        data.data,
        data_dir=_data_dir(settings),
        image_size=data.image_size,
        strict=data.strict_data,
        progress=progress,
    )
    dataset = open_folder(settings, folder)
    if dataset.num_batches("train", settings.train.batch_size) == 0:
        raise UserError(
            f"--batch-size {settings.train.batch_size}: {data.data} has {dataset.count('train')} training images "
            f"({dataset.count('validate')} more validate), fewer than one batch. "
            f"Give at most --batch-size {dataset.count('train')}."
        )
    return dataset


def check_data(settings: Settings) -> None:
    """Refuses at once data that are not there, before anything is opened or started. Raises UserError."""
    data = settings.data
    _at_least(0, "--memory-budget", data.memory_budget)
    _at_least(1, "--shuffle-window", data.shuffle_window)
    if data.validation != "test" and not 0 < data.validation < 1:
        raise UserError(
            f"--validation {data.validation}: must lie between 0 and 1, both excluded, or be test. "
            "The weights of the best validation loss are the ones kept."
        )
    prepare.check(data.data, data_dir=_data_dir(settings), image_size=data.image_size)


def _data_dir(settings: Settings) -> Path | None:
    return Path(settings.data.data_dir) if settings.data.data_dir else None


def open_folder(settings: Settings, folder: Path) -> Dataset:
    """Opens a prepared folder with a run's settings: the same division and order wherever it is opened."""
    data = settings.data
    return Dataset(
        folder,
        seed=settings.train.seed,
        validation=data.validation,
        train_fraction=data.train_fraction,
        label_noise=data.label_noise,
        memory_budget=int(data.memory_budget * 2**30),
        shuffle_window=data.shuffle_window,
        max_batches=settings.train.max_steps,
        keep_last=settings.train.last_batch == "keep",
        strict=data.strict_data,
    )


def settle_baseline(settings: Settings) -> Settings:
    """Settings that spell ``baseline`` out: the method, no heads, the serial executor. Others as they are.

    Raises:
        UserError: stages or threads are asked for, and a baseline's net is one piece.
    """
    method = BaselineSettings(feedback=settings.baseline) if settings.baseline is not None else settings.method
    if not isinstance(method, BaselineSettings):
        return settings
    pipe, name = settings.pipeline, f"--baseline {method.feedback}"
    if pipe.stages not in ("auto", 1):
        raise UserError(
            f"--stages {pipe.stages} with {name}: the error of the whole net's output teaches every layer, so the net "
            "is one piece. Use --stages 1."
        )
    if isinstance(pipe.partition, tuple) and len(pipe.partition) > 1:
        raise UserError(
            f"--partition {_listed(pipe.partition)} with {name}: the net is one piece to it. Leave --partition out."
        )
    if pipe.executor == "threads":
        raise UserError(
            f"--executor threads with {name}: the error of the whole net's output teaches every layer, so the net is "
            "one piece and there is nothing to run beside it. Use --executor serial."
        )
    return replace(
        settings,
        method=method,
        baseline=None,
        head=replace(settings.head, mode="none"),
        pipeline=replace(pipe, executor="serial", partition="even"),
    )


def check(settings: Settings) -> None:
    """Refuses values that no data set could make right. Raises UserError."""
    train, head, pipe = settings.train, settings.head, settings.pipeline
    settings.method.check()
    _at_least(1, "--epochs", train.epochs)
    if train.max_steps is not None:
        _at_least(1, "--max-steps", train.max_steps)
    if train.batch_size < 2:
        raise UserError(
            f"--batch-size {train.batch_size}: a contrastive loss compares images with each other. Give at least 2."
        )
    if not 0 < train.lr < math.inf:
        raise UserError(f"--lr {train.lr}: must be above 0.")
    _at_least(0, "--weight-decay", train.weight_decay)
    if list(train.milestones) != sorted(set(train.milestones)) or any(m < 1 for m in train.milestones):
        given = " ".join(str(m) for m in train.milestones)
        raise UserError(f"--milestones {given}: epochs of at least 1, each above the one before.")
    if not 0 < train.lr_decay <= 1:
        raise UserError(f"--lr-decay {train.lr_decay}: must be above 0 and at most 1.")
    predicts = settings.method.predicts()
    if head.mode == "none" and not predicts:
        raise UserError(
            f"--head none: layers trained by {settings.method.kind} do not predict by themselves. "
            "Use --head after or --head online."
        )
    if train.keep == "accuracy" and head.mode != "online" and not predicts:
        raise UserError("--keep accuracy needs a prediction while the layers learn. Use --head online, or --keep loss.")
    if head.head_lr != "lr" and not 0 < head.head_lr < math.inf:
        raise UserError(f"--head-lr {head.head_lr}: must be above 0.")
    if head.mode == "after":
        _at_least(1, "--head-epochs", head.head_epochs)
    for name, value in (("--queue-depth", pipe.queue_depth), ("--threads", pipe.threads)):
        _at_least(1, name, value)
    _at_least(0, "--feeders", pipe.feeders)
    for name, seconds in (
        ("--stall-timeout", pipe.stall_timeout),
        ("--resource-timeout", pipe.resource_timeout),
        ("--log-every", settings.log_every),
    ):
        _at_least(0.1, name, seconds)
    if pipe.stages != "auto":
        partition(num_layers(settings), pipe.stages)
    if isinstance(pipe.partition, tuple):
        _check_sizes(pipe.partition, num_layers(settings), pipe)
    if pipe.executor == "serial" and pipe.stages not in ("auto", 1):
        raise UserError(
            f"--executor serial has one stage, not {pipe.stages}. Leave --stages out, or use --executor ray."
        )


def _check_sizes(sizes: tuple[int, ...], num_layers: int, pipe: PipelineSettings) -> None:
    """Refuses sizes of stages that do not fit the net, or what else is asked of its stages."""
    given = f"--partition {_listed(sizes)}"
    if sum(sizes) != num_layers or min(sizes, default=0) < 1:
        raise UserError(
            f"{given}: these are {sum(sizes)} layers, this net has {num_layers}. "
            f"Give the layers of each stage, at least 1, that add up to {num_layers}."
        )
    if pipe.executor == "serial" and len(sizes) > 1:
        raise UserError(f"{given}: --executor serial has one stage. Use --partition even, or --executor ray.")
    if pipe.stages not in ("auto", len(sizes)):
        raise UserError(
            f"{given} has {len(sizes)} stage{'s' if len(sizes) > 1 else ''} and --stages asks for {pipe.stages}. "
            f"Leave one of them out, or give --partition even."
        )


def resolve(settings: Settings, dataset: Dataset) -> Settings:
    """Settings that fit the data, with net and augmentation settled. Raises UserError where they do not fit."""
    index = dataset.index
    facts = DATASETS.get(settings.data.data)
    padding = settings.augment.crop_padding
    if padding == "auto":
        padding = facts.crop_padding if facts else min(index.shape[1:]) // 8
    flip = settings.augment.flip
    if flip == "auto":
        flip = "on" if facts is None or facts.flip else "off"
    batches = dataset.num_batches("train", settings.train.batch_size)
    if settings.pipeline.feeders > batches:
        raise UserError(
            f"--feeders {settings.pipeline.feeders}: an epoch has {batches} batches. Give at most --feeders {batches}."
        )
    if len(index.classes) < 2:
        raise UserError(f"{settings.data.data} has one class, {index.classes[0]!r}. Contrast needs at least two.")
    net = settings.net.resolve(index.shape)
    return replace(
        _shortened(settings, dataset),
        net=net,
        method=settings.method.resolve(layer_features(settings.method.adapt(net), index.shape)),
        data=replace(settings.data, data=settings.data.data if facts else str(Path(settings.data.data).resolve())),
        augment=replace(settings.augment, crop_padding=padding, flip=flip),
    )


def _shortened(settings: Settings, dataset: Dataset) -> Settings:
    """Settings with as many epochs, of layers and of heads, as ``max_steps`` leaves room for: at least one."""
    most = settings.train.max_steps
    if most is None:
        return settings
    epochs = max(1, most // dataset.num_batches("train", settings.train.batch_size))
    return replace(
        settings,
        train=replace(settings.train, epochs=min(settings.train.epochs, epochs)),
        head=replace(settings.head, head_epochs=min(settings.head.head_epochs, epochs)),
    )


def num_stages(settings: Settings, num_devices: int) -> int:
    """Stages of a run on so many devices: as asked for, or as many as devices and at most as many as layers."""
    pipe = settings.pipeline
    if pipe.executor == "serial":
        return 1
    if isinstance(pipe.partition, tuple):
        return len(pipe.partition)
    return max(1, min(num_layers(settings), num_devices)) if pipe.stages == "auto" else pipe.stages


def place(settings: Settings, dataset: Dataset, devices: Devices) -> RunSpec:
    """The run on these devices. Raises UserError or ResourcesError.

    ``settings`` come from ``resolve``; a balanced partition has been settled to sizes, for which layers are timed.
    """
    index = dataset.index
    facts = DATASETS.get(settings.data.data)
    stages = num_stages(settings, devices.count)
    transport = _transport(settings.pipeline, devices, stages)
    kind: Literal["cpu", "cuda"] = "cuda" if devices.kind == "cuda" else "cpu"
    assert settings.augment.crop_padding != "auto" and settings.augment.flip != "auto", "resolve() settles both"
    spec = RunSpec(
        settings=replace(
            settings, pipeline=replace(settings.pipeline, stages=stages, transport=transport, device=kind)
        ),
        data_folder=str(dataset.folder.resolve()),
        data_name=index.name,
        content_hash=index.content_hash,
        shape=index.shape,
        classes=tuple(index.classes),
        augment=AugmentConfig(
            crop_padding=settings.augment.crop_padding,
            flip=settings.augment.flip == "on",
            randaugment_ops=settings.augment.randaugment_ops,
            randaugment_magnitude=settings.augment.randaugment_magnitude,
            mean=tuple(facts.mean if facts and facts.mean else index.mean),
            std=tuple(facts.std if facts and facts.std else index.std),
        ),
        top_k=facts.top_k if facts else 1,
        steps_per_epoch=dataset.num_batches("train", settings.train.batch_size),
        stages=_divide(settings, stages),
        device=kind,
    )
    if spec.compiles == "graphs" and kind != "cuda":
        raise UserError("--compile graphs: CUDA graphs are a GPU's. Use --compile on.")
    if spec.compiles is not None:
        check_compiler(kind)
    return spec


def _transport(pipe: PipelineSettings, devices: Devices, stages: int) -> Transport:
    """How activations travel. "auto" stays between CPUs: neighbours find out whether they share a machine."""
    if devices.kind == "cpu":
        if pipe.transport == "nccl":
            raise UserError("--transport nccl works between GPUs only. Use --transport auto, shm or gloo on CPUs.")
        return pipe.transport
    if pipe.transport == "shm":
        raise UserError("--transport shm works between CPUs only. Use --transport auto, nccl or gloo on GPUs.")
    shared = stages > devices.count
    if pipe.transport == "nccl" and shared:
        raise UserError(
            f"--transport nccl: {stages} stages share {devices.count} GPU{'s' if devices.count > 1 else ''}, and two "
            f"ranks of NCCL cannot. Use --transport gloo, or at most --stages {devices.count}."
        )
    if pipe.transport == "auto":
        return "gloo" if shared or pipe.executor != "ray" else "nccl"
    return pipe.transport


def _divide(settings: Settings, stages: int) -> tuple[range, ...]:
    """The layers of each stage."""
    sizes = settings.pipeline.partition
    assert sizes != "balanced", "settled to sizes where layers can be timed"
    return partition(num_layers(settings), stages) if sizes == "even" else sized(sizes)


def num_layers(settings: Settings) -> int:
    """Layers of the net that the method trains."""
    return settings.method.adapt(settings.net).num_layers


def _listed(sizes: tuple[int, ...]) -> str:
    return " ".join(str(size) for size in sizes)


def _at_least(low: float, name: str, value: float) -> None:
    if not low <= value < math.inf:
        raise UserError(f"{name} {value}: must be a number of at least {low:g}.")
