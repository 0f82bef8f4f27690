"""What a layer's training step takes and holds, as it was measured on some machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One layer's training step: medians in seconds, sizes in bytes."""

    forward: float
    """Until its activations can be sent."""
    loss: float
    """The local loss."""
    backward: float
    update: float
    """The optimizer's step, and that of an online readout."""
    enter: float = 0.0
    """Augmentation of the batch; the first layer's alone."""
    bytes_out: int
    """A message to the next layer, labels included."""
    weight_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    """What the forward pass keeps for the backward pass, its input apart. On CUDA: the step's peak."""

    @property
    def before(self) -> float:
        """Seconds until its activations can be sent, augmentation included."""
        return self.enter + self.forward

    @property
    def after(self) -> float:
        """Seconds of what follows."""
        return self.loss + self.backward + self.update

    @property
    def seconds(self) -> float:
        return self.before + self.after


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What is known of a run's layers on a machine.

    Attributes:
        alone: each layer's cost with nothing else at work.
        busy: the same with ``num_busy`` devices at work.
        jitter: how much a step's seconds vary: robust standard deviation over median, while all are busy.
        feed_seconds: a feeder's, for a batch that it has read before where memory allows to keep it.
        feed_bytes: of a message to the first stage.
        copy_bandwidth: bytes per second of a copy within the device's memory.
        link_bandwidth: bytes per second between two GPUs of this machine; None where there are none.
        others, crowded: ``pipeline.planning.parts.Cores``; seen on one machine, and not measured anew.
        took: seconds that it took to find out.
    """

    alone: tuple[LayerCost, ...]
    busy: tuple[LayerCost, ...]
    num_busy: int
    jitter: float
    feed_seconds: float
    feed_bytes: int
    copy_bandwidth: float
    link_bandwidth: float | None = None
    others: float = 0.0
    crowded: float = 1.0
    took: float = 0.0

    @property
    def speed_alone(self) -> float:
        """How much faster a device is while no other one works."""
        seconds = [sum(cost.seconds for cost in costs) for costs in (self.busy, self.alone)]
        return max(1.0, seconds[0] / seconds[1])


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one process measured of one kind of load."""

    costs: tuple[LayerCost, ...]
    jitter: float
    copy_bandwidth: float
