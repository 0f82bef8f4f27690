"""From what a person asked for to a run that can start: every "auto" resolved, every mistake found first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pipeline.config import checks
from pipeline.config.checks import check_data, data_dir, listed, num_layers
from pipeline.config.compiler import check_compiler
from pipeline.config.devices import Devices
from pipeline.config.partition import partition, sized
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import PipelineSettings, Settings
from pipeline.data import prepare
from pipeline.data.augment import AugmentConfig
from pipeline.data.index import UNLABELLED, DataIndex
from pipeline.data.loader import Dataset
from pipeline.data.registry import DATASETS
from pipeline.data.sources.base import Progress
from pipeline.errors import UserError
from pipeline.methods import METHODS, BaselineSettings, MethodConfig
from pipeline.methods.auxiliary import AuxiliaryMethod
from pipeline.nets.sizes import layer_features
from pipeline.stores import is_url
from pipeline.transport import CARRIERS, Transport
from pipeline.transport.base import DeviceKind, automatic, between


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
        data_dir=data_dir(settings),
        image_size=data.image_size,
        strict=data.strict_data,
        progress=progress,
    )
    dataset = open_folder(settings, folder)
    if dataset.num_batches("train", settings.train.batch_size) == 0:
        raise UserError(
            f"`batch_size` {settings.train.batch_size}: {data.data} has {dataset.count('train')} training images "
            f"({dataset.count('validate')} more validate), fewer than one batch. "
            f"Give at most `batch_size` {dataset.count('train')}."
        )
    return dataset


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


def expand_baseline(settings: Settings) -> Settings:
    """Settings that spell ``baseline`` out: the method, no readouts, the serial executor. Others as they are.

    Raises:
        UserError: stages or threads are asked for, and a baseline's net is one piece.
    """
    method = _baseline(settings)
    if isinstance(method, BaselineSettings):
        name = f"`baseline` {method.feedback}"
    elif isinstance(method, AuxiliaryMethod) and method.deep_supervision:
        name = "`baseline` bp-deep"
    else:
        return settings
    pipe = settings.pipeline
    if pipe.stages not in ("auto", 1):
        raise UserError(
            f"`stages` {pipe.stages} with {name}: the error of the whole net's output teaches every layer, so the net "
            "is one piece. Use `stages` 1."
        )
    if isinstance(pipe.partition, tuple) and len(pipe.partition) > 1:
        raise UserError(
            f"`partition` {listed(pipe.partition)} with {name}: the net is one piece to it. Leave `partition` out."
        )
    if pipe.executor == "threads":
        raise UserError(
            f"`executor` threads with {name}: the error of the whole net's output teaches every layer, so the net is "
            "one piece and there is nothing to run beside it. Use `executor` serial."
        )
    return replace(
        settings,
        method=method,
        baseline=None,
        readout=replace(settings.readout, mode="none"),
        pipeline=replace(pipe, executor="serial", partition="even"),
    )


def _baseline(settings: Settings) -> MethodConfig:
    """The method that ``baseline`` stands for, else the one that is asked for.

    Backpropagation that begins with a run's weights has a classifier as that run's last readout, to begin with that.

    Raises:
        UserError: the net would go on from a run in which its layers were not all there was to it; or the method has no
            auxiliary nets for deep supervision.
    """
    method = settings.method
    if settings.baseline is None:
        return method
    if settings.baseline == "bp-deep":
        return _deeply_supervised(method)
    if settings.train.init_from is None or settings.baseline != "bp":
        return BaselineSettings(feedback=settings.baseline)
    if not method.leaves_plain(settings.net):
        raise UserError(
            f"`init_from` {settings.train.init_from}: between layers trained by {method.kind} there is more than the "
            "net, so backpropagation cannot go on with them. Leave it out."
        )
    return BaselineSettings.like_readout(method, settings.net, norm=settings.readout.readout_norm)


def _deeply_supervised(method: MethodConfig) -> MethodConfig:
    if not isinstance(method, AuxiliaryMethod):
        kinds = ", ".join(sorted(kind.kind for kind in METHODS if issubclass(kind, AuxiliaryMethod)))
        raise UserError(
            f"`baseline` bp-deep: deep supervision takes a method's auxiliary nets, and {method.kind} has none. "
            f"These have: {kinds}. Use `baseline` bp."
        )
    return replace(method, deep_supervision=True)


def resolve(settings: Settings, dataset: Dataset) -> Settings:
    """Settings that fit the data, no "auto" left in net and augmentation. Raises UserError where they do not fit."""
    index = dataset.index
    facts = DATASETS.get(settings.data.data)
    by_name = facts is not None or is_url(settings.data.data)
    padding = settings.augment.crop_padding
    if padding == "auto":
        padding = facts.crop_padding if facts else min(index.shape[1:]) // 8
    flip = settings.augment.flip
    if flip == "auto":
        flip = "on" if facts is None or facts.flip else "off"
    batches = dataset.num_batches("train", settings.train.batch_size)
    if settings.pipeline.feeders > batches:
        raise UserError(
            f"`feeders` {settings.pipeline.feeders}: an epoch has {batches} batches. Give at most `feeders` {batches}."
        )
    if padding > (most := min(index.shape[1:])):
        raise UserError(
            f"`crop_padding` {padding}: {settings.data.data} has images of {index.shape[1]}×{index.shape[2]} pixels. "
            f"Give at most `crop_padding` {most}."
        )
    readout = settings.readout
    if len(index.classes) < 2:
        _check_one_class(settings, index)
        readout = replace(readout, mode="none")
    _check_last_batch(settings, dataset)
    net = settings.net.resolve(index.shape)
    settings.method.check_data(net, index.shape, len(index.classes))
    return replace(
        _shortened(replace(settings, readout=readout), dataset),
        net=net,
        method=settings.method.resolve(layer_features(settings.method.adapt(net), index.shape)),
        data=replace(settings.data, data=settings.data.data if by_name else str(Path(settings.data.data).resolve())),
        augment=replace(settings.augment, crop_padding=padding, flip=flip),
    )


def _check_one_class(settings: Settings, index: DataIndex) -> None:
    """Refuses images of one class, or without classes, where they are learned or told apart by them.

    Raises:
        UserError: saying what for.
    """
    data = settings.data.data
    if settings.method.needs_labels and index.classes == UNLABELLED:
        raise UserError(
            f"{data} holds images without classes, and method {settings.method.kind} learns from classes. Give a "
            "folder with one sub-folder of images for each class, or use a method that needs none, such as that of "
            "preset scff-mlp-mnist."
        )
    if settings.method.needs_labels:
        raise UserError(f"{data} has one class, {index.classes[0]!r}. Contrast needs at least two.")
    if settings.train.keep == "accuracy":
        raise UserError(f"`keep` accuracy: {data} has no classes to be right about. Use `keep` loss or `keep` last.")


def _check_last_batch(settings: Settings, dataset: Dataset) -> None:
    """Refuses a smaller last batch with fewer images than the method learns from. Raises UserError."""
    train, method = settings.train, settings.method
    left = dataset.count("train") % train.batch_size
    if train.last_batch == "keep" and 0 < left < method.smallest_batch:
        raise UserError(
            f"`batch_size` {train.batch_size} with `last_batch` keep: of {dataset.count('train'):,} training images "
            f"the last batch has {left}, and method {method.kind} contrasts at least {method.smallest_batch}. Use "
            "`last_batch` drop, or another `batch_size`."
        )


def _shortened(settings: Settings, dataset: Dataset) -> Settings:
    """Settings with as many epochs, of layers and of readouts, as ``max_steps`` leaves room for: at least one."""
    most = settings.train.max_steps
    if most is None:
        return settings
    epochs = max(1, most // dataset.num_batches("train", settings.train.batch_size))
    return replace(
        settings,
        train=replace(settings.train, epochs=min(settings.train.epochs, epochs)),
        readout=replace(settings.readout, readout_epochs=min(settings.readout.readout_epochs, epochs)),
    )


def num_stages(settings: Settings, num_devices: int) -> int:
    """Stages of a run on so many devices: as asked for, or as many as devices and at most as many as layers."""
    pipe = settings.pipeline
    if pipe.executor == "serial":
        return 1
    if isinstance(pipe.partition, tuple):
        return len(pipe.partition)
    return max(1, min(num_layers(settings), num_devices)) if pipe.stages == "auto" else pipe.stages


def build_run(settings: Settings, devices: Devices, *, dataset: Dataset | None = None) -> RunSpec:
    """The run that settings ask for, on these devices: checked, every "auto" replaced, every stage given its layers.

    Args:
        settings: as asked for, or as ``resolve`` gives them. A balanced partition has been replaced by sizes, for which
            layers are timed.
        dataset: what ``open_data`` gives for these settings, where the caller needs it as well.

    Raises:
        UserError, ResourcesError: something asked for cannot be; what is allowed is in the message.
    """
    checks.check(settings)
    dataset = dataset if dataset is not None else open_data(settings)
    settings = resolve(settings, dataset)
    index = dataset.index
    facts = DATASETS.get(settings.data.data)
    stages = num_stages(settings, devices.count)
    transport = _transport(settings.pipeline, devices, stages)
    kind: Literal["cpu", "cuda"] = "cuda" if devices.kind == "cuda" else "cpu"
    assert settings.augment.crop_padding != "auto" and settings.augment.flip != "auto", "resolve() replaces both"
    spec = RunSpec(
        settings=replace(
            settings, pipeline=replace(settings.pipeline, stages=stages, transport=transport, device=kind)
        ),
        data_folder=str(dataset.folder.resolve()),
        data_name=index.name,
        content_hash=index.content_hash,
        shape=index.shape,
        num_images=(index.splits["train"].count, index.splits["test"].count),
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
    if settings.pipeline.graphs == "on" and kind != "cuda":
        raise UserError("`graphs` on: CUDA graphs are a GPU's, and this run is on CPUs. Use `graphs` auto or off.")
    if settings.pipeline.precision == "tf32" and kind != "cuda":
        raise UserError("`precision` tf32: TF32 is a GPU's. Use `precision` fp32.")
    if spec.compiles:
        check_compiler(kind)
    return spec


def _transport(pipe: PipelineSettings, devices: Devices, stages: int) -> Transport:
    """How activations travel. "auto" stays between CPUs: neighbours find out whether they share a machine."""
    kind: DeviceKind = "cuda" if devices.kind == "cuda" else "cpu"
    shared = kind == "cuda" and stages > devices.count
    if pipe.transport == "auto":
        if kind == "cpu":
            return "auto"
        return next(one.kind for one in automatic(kind) if one.shares_gpu or not (shared or pipe.executor != "ray"))
    carrier = CARRIERS[pipe.transport]
    fitting = [one.kind for one in between(kind)]
    if kind not in carrier.devices:
        here, elsewhere = ("CPUs", "GPUs") if kind == "cpu" else ("GPUs", "CPUs")
        others = " or ".join([", ".join(["auto", *fitting[:-1]]), fitting[-1]])
        raise UserError(
            f"`transport` {carrier.kind} works between {elsewhere} only. Use `transport` {others} on {here}."
        )
    if shared and not carrier.shares_gpu:
        sharing = next(one.kind for one in between(kind) if one.shares_gpu)
        raise UserError(
            f"`transport` {carrier.kind}: {stages} stages share {devices.count} GPU{'s' if devices.count > 1 else ''}, "
            f"and two ranks of {carrier.kind.upper()} cannot. Use `transport` {sharing}, or at most `stages` "
            f"{devices.count}."
        )
    return carrier.kind


def _divide(settings: Settings, stages: int) -> tuple[range, ...]:
    """The layers of each stage."""
    sizes = settings.pipeline.partition
    assert sizes != "balanced", "resolved to sizes where layers can be timed"
    return partition(num_layers(settings), stages) if sizes == "even" else sized(sizes)
