"""What can be reported of a run: each measure by its name, with how it is read from the run's summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from launch.output.saved_runs import SavedRun
from pipeline.methods.baseline import BaselineSettings

Read = Callable[[SavedRun, int | None], float | None]
"""A figure of a run, of one of its layers (from 1) where it is a layer's; None where the run has none."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure.

    Attributes:
        heading: of its column.
        read: the figure of a run.
        digits: behind the decimal point.
        is_difference: the figure of an entry's run less that of the run that it is compared with, seed by seed.
    """

    heading: str
    read: Read
    digits: int = 2
    is_difference: bool = False

    def shown(self, value: float) -> str:
        """A figure as it stands in the table."""
        return f"{value:+,.{self.digits}f}" if self.is_difference else f"{value:,.{self.digits}f}"

    def difference(self, value: float) -> str:
        """A difference between two of its figures."""
        return f"{value:+,.{self.digits}f}"


def _percent(value: Any) -> float | None:
    return None if value is None else 100 * value


def _accuracy(run: SavedRun, _: int | None) -> float | None:
    return _percent(run.value("test_top_k"))


def _error(run: SavedRun, _: int | None) -> float | None:
    accuracy = run.value("test_accuracy")
    return None if accuracy is None else 100 * (1 - accuracy)


def _of_layer(run: SavedRun, layer: int | None, name: str) -> float | None:
    layers = run.value("layers") or []
    if layer is not None and layer > len(layers):
        return None
    value = layers[(layer or len(layers)) - 1].get(name) if layers else None
    return None if value is None else float(value)


def _accuracy_of(layer: int | None) -> Read:
    """Accuracy of a layer's readout, or of what it predicts by itself; ``layer`` None: the entry's.

    A baseline has none: its net is one piece.
    """

    def read(run: SavedRun, of_entry: int | None) -> float | None:
        if run.value("method", "kind") == BaselineSettings.kind:
            return None
        chosen = layer or of_entry
        by_readout = _of_layer(run, chosen, "test_accuracy")
        return _percent(by_readout if by_readout is not None else _of_layer(run, chosen, "test_direct_accuracy"))

    return read


def _seconds_an_epoch(run: SavedRun, _: int | None) -> float | None:
    speed, images = run.value("speed", "images_per_second"), run.value("data", "train")
    return images / speed if speed and images else None


MEASURES: Mapping[str, Measure] = {
    "accuracy": Measure(heading="accuracy, %", read=_accuracy),
    "error": Measure(heading="error, %", read=_error),
    "gain": Measure(heading="accuracy, points more", read=_accuracy, is_difference=True),
    "seconds": Measure(heading="s/epoch", read=_seconds_an_epoch, digits=1),
    "layer-accuracy": Measure(heading="accuracy, %", read=_accuracy_of(None)),
    "fisher": Measure(heading="Fisher criterion", read=lambda run, layer: _of_layer(run, layer, "validation_fisher")),
    "loss": Measure(
        heading="validation loss", read=lambda run, layer: _of_layer(run, layer, "validation_loss"), digits=3
    ),
    **{f"layer-{layer}": Measure(heading=f"layer {layer}, %", read=_accuracy_of(layer)) for layer in range(1, 4)},
}
"""Every measure by its name. Accuracies and errors are of the test images and in per cent, as papers have them.
Accuracy is the data set's customary one, top-5 on CIFAR-100 and top-10 on Tiny ImageNet; error is always top-1's."""
