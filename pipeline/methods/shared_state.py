"""State that the layers of a run share and change together, in versions. Label embeddings are one case of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pipeline.versions import Update, Versions


@dataclass(frozen=True, kw_only=True)
class TrainingInfo:
    """What a shared state may build itself from.

    Attributes:
        lr, weight_decay: the run's.
        lr_factor: what learning rates are multiplied by in an epoch (0-based).
    """

    num_layers: int
    num_classes: int
    steps_per_epoch: int
    seed: int
    lr: float
    weight_decay: float
    lr_factor: Callable[[int], float]


class SharedState(ABC):
    """A tensor that layers read, and to which they contribute in every training step.

    Which version a layer reads, and whose contributions make the next one, follows from ``versions``: from the model
    and the step, never from stages or timing. It lives on the CPU, in one place.

    Attributes:
        title: what it is called in messages.
        advice: what helps where its numbers run away.
        values: it as it is now, float32.
    """

    title: ClassVar[str]
    advice: ClassVar[str] = "A lower `lr` helps most."
    values: Tensor
    versions: Versions

    @abstractmethod
    def update(self, contributions: Mapping[Update, Tensor], updates: Sequence[Update]) -> None:
        """Changes ``values`` to the next version.

        Args:
            contributions: of a layer and step, each (as ``values``), on the CPU.
            updates: their keys in the order in which they count, whatever the one in which they came.
        """

    def state(self) -> dict[str, Tensor]:
        """What the next update depends on beside the values, by name."""
        return {}

    def load(self, values: Tensor, state: Mapping[str, Tensor]) -> None:
        """Goes on from values and what ``state`` gave with them. Who overrides one overrides the other."""
        assert not state, f"{type(self).__name__} has state() and no load()"
        self.values = values.clone()
