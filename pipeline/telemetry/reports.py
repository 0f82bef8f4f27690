"""What is measured: each layer's tallies over a pass, and where each stage's time went."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.kind import Kind
from pipeline.telemetry.clock import TimeBreakdown
from pipeline.telemetry.machine import MachineReading
from pipeline.telemetry.offset import Offset


@dataclass(kw_only=True)
class Status:
    """Where a stage is right now, for whoever watches.

    Attributes:
        kind: the last message's, None before the first.
        epoch, step: its position in the run.
        images: images in training batches so far (an image counts once, whatever the number of views).
        losses: the latest loss of each of the stage's layers, NaN before the first.
        waiting: messages in the stage's queue.
        memory: bytes that the stage holds now: of its GPU's, or its process's resident ones.
        device: what the stage runs on, for people.
        restored: whether it has taken the best epoch's weights.
        account: the stage's clock.
        replica: which of the stage's workers, 0-based.
        machine: what its machine is doing, read some seconds ago; None where the system does not tell.
        feeders: of the first stage, those that feed it; none where it reads for itself.
        keeps_images: whether it is the first one and has the decoded images on its device.
        notes: what a person should know of how it works, in sentences; the same for as long as it works.
    """

    stage: int
    account: TimeBreakdown
    kind: Kind | None = None
    epoch: int = 0
    step: int = 0
    images: int = 0
    losses: list[float] = field(default_factory=list)
    waiting: int = 0
    memory: int = 0
    device: str = ""
    restored: bool = False
    replica: int = 0
    machine: MachineReading | None = None
    feeders: list[FeederStatus] = field(default_factory=list)
    keeps_images: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FeederStatus:
    """A feeder right now.

    Attributes:
        account: its clock: busy with reading and batching, copying, waiting for room in the first stage's queue.
        machine: as of a stage.
    """

    account: TimeBreakdown
    machine: MachineReading | None = None


@dataclass(kw_only=True)
class LayerReport:
    """What a pass over a split said about one layer.

    Attributes:
        layer: 0-based index.
        losses: local loss of every step (steps,) float32; empty in passes that do not train the layer.
        loss: mean local loss over the images of the pass (over steps, when training); NaN for a layer that did not
            take part.
        accuracy, top_k: share of images whose class is predicted first, or among the first k: by the readout, or where
            there is none by the layer itself; None where neither predicts.
        direct_accuracy: the share that the layer predicts by itself, such as by similarity to label embeddings; None
            for methods that cannot.
        version_skew: by how many updates the label embeddings that the layer read lagged behind, in the mean over the
            steps; None for layers that share none.
        readout_loss: mean cross-entropy of the readout; None without one.
        fisher: Fisher criterion of the pooled features; None in training passes.
        predictions: the class that ``accuracy`` judges for every image (N,) int64, in test passes.
        vitals: how the layer is at the end of a training pass in which it learned: "gradient_norm" (of its last
            step), "weight_norm", "learning_rate"; in an evaluation what its method has to show of it
            (``Rule.figures``), on the pass's first batch.
    """

    layer: int
    losses: NDArray[np.float32]
    loss: float
    accuracy: float | None = None
    top_k: float | None = None
    direct_accuracy: float | None = None
    version_skew: float | None = None
    readout_loss: float | None = None
    fisher: float | None = None
    predictions: NDArray[np.int64] | None = None
    vitals: dict[str, float] = field(default_factory=dict)

    @property
    def has_readout(self) -> bool:
        """Whether ``accuracy`` is a readout's, not what the layer predicts by itself."""
        return self.readout_loss is not None


@dataclass(kw_only=True)
class PassReport:
    """One stage's report on a finished pass."""

    stage: int
    replica: int = 0
    """Which of the stage's workers it is of, 0-based."""
    kind: Kind
    epoch: int
    layers: list[LayerReport]
    ids: NDArray[np.int64] | None = None
    labels: NDArray[np.int64] | None = None
    account: TimeBreakdown | None = None
    """The stage's time since its report before."""
    started_at: float = 0.0
    """When the stage began, in seconds since 1970."""
    steps: StepTimes | None = None
    """When the steps ended; of a stage's training passes."""
    layer_seconds: dict[int, float] | None = None
    """Computing time of each of the stage's layers (0-based) in a training pass; None where that is not known."""


@dataclass(frozen=True)
class StepTimes:
    """The steps of a training pass on a stage's clock.

    Attributes:
        ended: when each ended, in seconds since 1970 (steps,) float64.
        spent: what the clock had spent by then (steps, kinds) float64, kinds in the order of ``TimeCategory``.
    """

    ended: NDArray[np.float64]
    spent: NDArray[np.float64]


def aligned(report: PassReport, offset: Offset) -> PassReport:
    """A report by the launching process's clock; its stage's own is ahead of that."""
    if not offset.seconds:
        return report
    steps = report.steps
    if steps is not None:
        steps = replace(steps, ended=steps.ended - offset.seconds)
    return replace(report, started_at=report.started_at - offset.seconds, steps=steps)
