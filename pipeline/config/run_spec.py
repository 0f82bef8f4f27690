"""A run, resolved: settings without any "auto" left, and the facts of its data. Workers build their parts from it.

One "auto" stays: between CPUs, neighbours find out for themselves whether they share a machine (``transport``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from pipeline.config.compiler import ENOUGH_STEPS
from pipeline.config.partition import partition
from pipeline.config.settings import Settings
from pipeline.data.augment import AugmentConfig
from pipeline.kind import Kind
from pipeline.methods import BatchPosition, ModelInfo
from pipeline.methods.shared_state import SharedState, TrainingInfo
from pipeline.nets import NetConfig, Shape
from pipeline.nets.sizes import on_meta_device
from pipeline.telemetry.trace import TracePlan, TraceWish
from pipeline.versions import Versions


@dataclass(frozen=True)
class Phase:
    """A part of a run: the layers that learn in it, and its epochs, counted over the whole run."""

    layers: range
    epochs: range


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Everything the numbers of a run depend on, and where its work is done.

    Attributes:
        settings: resolved settings; what they decide is documented there.
        data_folder: prepared folder of shards with its index.
        data_name, content_hash: what the data is, byte for byte.
        shape: (channels, height, width) of an image.
        num_images: images of the data's two splits on disk, train and test.
        classes: class names, in label order.
        augment: resolved augmentation, with the normalisation's mean and standard deviation.
        top_k: the k of the data set's customary top-k accuracy.
        steps_per_epoch: training batches of an epoch.
        stages: for each stage its layers, contiguous and in order.
        device: "cpu" or "cuda".
        initial: for each layer what its net and its rule begin with, by names such as ``net.norm.weight``; the rest
            is random, as all is with None. A run that has begun needs it no more.
    """

    settings: Settings
    data_folder: str
    data_name: str
    content_hash: str
    shape: Shape
    num_images: tuple[int, int]
    classes: tuple[str, ...]
    augment: AugmentConfig
    top_k: int
    steps_per_epoch: int
    stages: tuple[range, ...]
    device: str
    initial: tuple[Mapping[str, Tensor], ...] | None = field(default=None, repr=False, compare=False)

    @property
    def net(self) -> NetConfig:
        """The net whose layers learn."""
        return self.settings.method.adapt(self.settings.net)

    @property
    def num_layers(self) -> int:
        return self.net.num_layers

    @property
    def model_info(self) -> ModelInfo:
        """What rules may know of the run."""
        return ModelInfo(
            num_layers=self.num_layers,
            num_classes=len(self.classes),
            mean=self.augment.mean,
            std=self.augment.std,
        )

    def num_parameters(self) -> tuple[int, int]:
        """Parameters of the net's layers, and of what only teaches them: their rules', such as auxiliary nets."""
        with on_meta_device():
            layers = [self.net.build(index, self.shape) for index in range(self.num_layers)]
            rules = [self.settings.method.build(i, layer, self.model_info) for i, layer in enumerate(layers)]
        of_net, of_rules = (sum(p.numel() for part in parts for p in part.parameters()) for parts in (layers, rules))
        return of_net, of_rules

    @cached_property  # asked for with every batch
    def phases(self) -> tuple[Phase, ...]:
        """Which layers learn when."""
        each = self.settings.train.epochs
        groups = self.settings.method.phases(self.num_layers)
        return tuple(Phase(layers, range(n * each, (n + 1) * each)) for n, layers in enumerate(groups))

    @property
    def epochs(self) -> int:
        """Training epochs of all phases."""
        return self.phases[-1].epochs.stop

    def phase_of(self, epoch: int) -> Phase:
        """The phase in which a training epoch is, or the last one before it."""
        phases = self.phases
        return phases[min(epoch // self.settings.train.epochs, len(phases) - 1)]

    def epoch_in_phase(self, epoch: int) -> int:
        """The epoch, counted from the beginning of its phase."""
        return epoch - self.phase_of(epoch).epochs.start

    @property
    def readouts(self) -> range:
        """Layers that have a readout, as far as the run goes on to train it."""
        readout = self.settings.readout
        if readout.mode == "none":
            return range(0)
        return range(0 if readout.readout_layers == "all" else self.num_layers - 1, self.num_layers)

    def batch_position(self, kind: Kind, epoch: int, step: int = 0, position: int = 0) -> BatchPosition:
        """Where a batch is in the run: ``step`` counts from the beginning of its pass."""
        match kind:
            case Kind.TRAIN:
                before = epoch * self.steps_per_epoch + step
            case Kind.VALIDATE:
                before = (epoch + 1) * self.steps_per_epoch
            case _:
                before = self.epochs * self.steps_per_epoch
        phase = self.phase_of(epoch) if kind in (Kind.TRAIN, Kind.VALIDATE) else self.phases[-1]
        several = kind in (Kind.TRAIN, Kind.VALIDATE) and len(self.phases) > 1
        return BatchPosition(
            epoch=epoch,
            step=before,
            position=position,
            training=kind is Kind.TRAIN,
            phase_step=before - phase.epochs.start * self.steps_per_epoch,
            phase=phase.layers if several else None,
            for_readouts=kind is Kind.READOUT,
        )

    def evaluation_views(self, kind: Kind, num_views: int) -> int:
        """Random views that an evaluation sees of an image, of a method that trains on so many; 0: the plain image."""
        augmented = kind is Kind.VALIDATE and self.settings.train.validation_views == "augmented"
        return num_views if augmented else 0

    @property
    def readout_views(self) -> int:
        """Random views of an image from which readouts learn after the layers; 0: the plain image."""
        return 0 if self.settings.readout.readout_views == "plain" else 1

    @property
    def compiles(self) -> bool:
        """Whether the layers are compiled."""
        how = self.settings.pipeline.compile
        return how == "on" or (how == "auto" and self.num_steps >= ENOUGH_STEPS)

    @property
    def graphs(self) -> bool:
        """Whether the layers' training steps are captured as CUDA graphs, as far as they can be."""
        return self.device == "cuda" and self.settings.pipeline.graphs != "off"

    @property
    def image_bytes(self) -> int:
        """Of all decoded images."""
        return sum(self.num_images) * math.prod(self.shape)

    @property
    def wants_images_on_device(self) -> bool:
        """Whether the first stage keeps the decoded images on its device, where they have room there."""
        pipe = self.settings.pipeline
        fitting = self.device == "cuda" and self.image_bytes <= self.settings.data.memory_budget * 2**30
        return pipe.executor != "serial" and (pipe.data_on == "device" or (pipe.data_on == "auto" and fitting))

    @property
    def num_steps(self) -> int:
        """Training steps of all epochs."""
        return self.epochs * self.steps_per_epoch

    @property
    def traced(self) -> TracePlan:
        """Training steps of the run of which a trace is made: from the second epoch on, if there is one."""
        first = self.steps_per_epoch if self.epochs > 1 else 0
        return TracePlan.of(TraceWish(self.settings.trace, self.settings.profile), first, self.num_steps)

    @property
    def shared_versions(self) -> Versions | None:
        """The versions of the state that layers share; None where they share none."""
        return self.settings.method.shared_versions(self.num_layers, self.steps_per_epoch)

    def shared_state(self) -> SharedState:
        """That state, as it begins."""
        train = self.settings.train
        return self.settings.method.shared_state(
            TrainingInfo(
                num_layers=self.num_layers,
                num_classes=len(self.classes),
                steps_per_epoch=self.steps_per_epoch,
                seed=train.seed,
                lr=train.lr,
                weight_decay=train.weight_decay,
                lr_factor=train.lr_factor,
            )
        )

    @property
    def num_stages(self) -> int:
        return len(self.stages)

    def in_stages(self, count: int) -> RunSpec:
        """The same run in so many stages, its layers divided evenly: its numbers do not depend on that."""
        pipe = replace(self.settings.pipeline, stages=count, partition="even")
        stages = partition(self.num_layers, count)
        return replace(self, settings=replace(self.settings, pipeline=pipe), stages=stages)

    def stage_device(self, stage: int) -> torch.device:
        """The device of a stage inside the process that runs it alone or, for one process, beside the others."""
        if self.device == "cpu":
            return torch.device("cpu")
        return torch.device("cuda", stage % torch.cuda.device_count())
