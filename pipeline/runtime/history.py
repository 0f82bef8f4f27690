"""What a run has said so far, put together from the stages' reports in whatever order they come."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config.run_spec import Phase, RunSpec
from pipeline.errors import RunError
from pipeline.kind import Kind
from pipeline.layers.state import Snapshot, State
from pipeline.runtime.passes import Pass
from pipeline.telemetry.clock import TimeBreakdown
from pipeline.telemetry.reports import LayerReport, PassReport

_FIGURES = tuple(one.name for one in fields(LayerReport) if one.name not in ("layer", "losses", "predictions"))
_ENDLESS = 2**63 - 1  # epochs, where nobody says how many


class History:
    """Layer reports by (kind, epoch, layer), and each stage's time account of every pass.

    Args:
        keep: what makes an epoch the best, as ``TrainSettings.keep``.
        phases: of the run; without any, all layers learn at once.
    """

    def __init__(
        self, num_layers: int, keep: Literal["loss", "accuracy", "last"] = "loss", phases: Sequence[Phase] = ()
    ) -> None:
        self.num_layers, self._keep = num_layers, keep
        self._phases = phases or (Phase(range(num_layers), range(_ENDLESS)),)
        self._layers: dict[tuple[Kind, int], dict[int, LayerReport]] = {}
        self._accounts: dict[tuple[Kind, int], dict[int, TimeBreakdown]] = {}
        self._seconds: dict[int, dict[int, float]] = {}  # of every layer, by epoch
        self.started_at: dict[int, float] = {}
        self.done_before = 0
        """Batches of the first pass with an account that an earlier part of the run had done."""
        self.ids: NDArray[np.int64] | None = None
        self.labels: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, spec: RunSpec) -> History:
        """The empty history of a run."""
        return cls(spec.num_layers, spec.settings.train.keep, spec.phases if len(spec.phases) > 1 else ())

    def add(self, report: PassReport) -> None:
        key = (report.kind, report.epoch)
        self._layers.setdefault(key, {}).update({layer.layer: layer for layer in report.layers})
        self.started_at[report.stage] = report.started_at
        if report.account is not None:
            self._accounts.setdefault(key, {})[report.stage] = report.account
        if report.layer_seconds is not None:
            self._seconds.setdefault(report.epoch, {}).update(report.layer_seconds)
        if report.ids is not None:
            self.ids, self.labels = report.ids, report.labels

    def snapshot(self, passes: Iterable[Pass]) -> Snapshot:
        """What was reported of these passes, as it is saved. Times are left out: they are of a part of the run."""
        tensors, reports = {}, []
        for kind, epoch, _ in passes:
            for index, report in sorted(self._layers.get((kind, epoch), {}).items()):
                tensors[f"{int(kind)}.{epoch}.{index}"] = torch.tensor(report.losses)
                figures = {name: getattr(report, name) for name in _FIGURES}
                reports.append([int(kind), epoch, index, figures])
        return Snapshot(tensors, {"reports": reports})

    def load_snapshot(self, snapshot: Snapshot) -> None:
        """Goes on from a snapshot. Raises KeyError, TypeError or ValueError where it is none."""
        for number, epoch, index, figures in snapshot.values["reports"]:
            losses = snapshot.tensors[f"{number}.{epoch}.{index}"].numpy()
            report = LayerReport(layer=index, losses=losses, **figures)
            self._layers.setdefault((Kind(number), epoch), {})[index] = report

    def passes(self) -> list[tuple[Kind, int]]:
        """Every pass of which every layer has reported."""
        return [key for key in self._layers if self.layers(*key) is not None]

    def layers(self, kind: Kind, epoch: int) -> list[LayerReport] | None:
        """Every layer's report on a pass, first layer first; None until the last stage has reported."""
        found = self._layers.get((kind, epoch), {})
        return [found[i] for i in range(self.num_layers)] if len(found) == self.num_layers else None

    def epochs(self, kind: Kind) -> list[int]:
        """Epochs in which every layer has finished a pass of this kind."""
        numbers = sorted(epoch for name, epoch in self._layers if name == kind)
        return [epoch for epoch in numbers if self.layers(kind, epoch) is not None]

    def step_losses(self) -> dict[str, NDArray[np.float32]]:
        """For each layer the loss of every training step, epoch after epoch (steps,), as ``layer 1`` and so on."""
        losses: dict[str, list[NDArray[np.float32]]] = {}
        for (name, _), found in sorted(self._layers.items()):
            for index, report in found.items() if name is Kind.TRAIN else ():
                losses.setdefault(f"layer {index + 1}", []).append(report.losses)
        return {name: np.concatenate(parts) for name, parts in sorted(losses.items())}

    def predictions(self) -> NDArray[np.int64] | None:
        """The last layer's test predictions (N, 3): sample id, label, predicted class. None before the test."""
        layers = self.layers(Kind.TEST, 0)
        if layers is None or layers[-1].predictions is None or self.ids is None or self.labels is None:
            return None
        return np.stack([self.ids, self.labels, layers[-1].predictions], axis=1)

    @property
    def best_epoch(self) -> int | None:
        """``best_in`` the latest phase that has one."""
        return next((best for phase in reversed(self._phases) if (best := self.best_in(phase)) is not None), None)

    def best_in(self, phase: Phase) -> int | None:
        """Of a phase's epochs validated so far the best one by its last layer, whose loss must be a number; the first
        of equals."""
        last = phase.layers[-1]
        found = {
            epoch: layers[last]
            for (name, epoch), layers in sorted(self._layers.items())
            if name is Kind.VALIDATE and epoch in phase.epochs and last in layers and math.isfinite(layers[last].loss)
        }
        if not found:
            return None
        match self._keep:
            case "loss":
                return min(found, key=lambda epoch: found[epoch].loss)
            case "accuracy":
                return max(found, key=lambda epoch: found[epoch].accuracy or 0.0)
            case "last":
                return max(found)

    def require_best_epoch(self, phase: Phase) -> int:
        """The best epoch of a phase that is over. Raises RunError where it has none."""
        best = self.best_in(phase)
        if best is None:
            which = "The last layer" if phase.layers.stop == self.num_layers else f"Layer {phase.layers.stop}"
            raise RunError(
                f"{which}'s validation loss was a number in no epoch, so no weights are worth keeping. "
                "A lower `lr` or a higher `temperature` helps most."
            )
        return best

    def accounts(self, *kinds: Kind, epochs: Container[int] | None = None) -> dict[int, TimeBreakdown]:
        """For each stage the sum of its time over all passes of these kinds, or those of some epochs."""
        total: dict[int, TimeBreakdown] = {}
        names = set(kinds)
        for (name, number), found in self._accounts.items():
            wanted = name in names and (epochs is None or number in epochs)
            for stage, account in found.items() if wanted else ():
                total[stage] = total[stage] + account if stage in total else account
        return total

    def layer_seconds(self, epochs: int | None = None) -> dict[int, float] | None:
        """Computing time of every layer over the last so many epochs, or all, that every stage has told of.

        None where no epoch is such.
        """
        whole = [seconds for _, seconds in sorted(self._seconds.items()) if len(seconds) == self.num_layers]
        chosen = whole[-epochs:] if epochs is not None else whole
        return {layer: sum(one[layer] for one in chosen) for layer in range(self.num_layers)} if chosen else None


@dataclass(kw_only=True)
class RunResult:
    """What a run leaves.

    Attributes:
        status: "finished", "interrupted" or "failed".
        best_epoch: the epoch whose weights were kept; None where no epoch was validated.
        weights: the kept weights, with the readouts: what is exported.
        last: weights and optimizer states at the end of the layers' training.
        history: all reports.
        seconds: wall time of the layers' training, the readouts' and the test, by name.
        devices: what each stage ran on.
        lost: which layers, and shared state, ``weights`` and ``last`` are without, for people: workers took them along.
        keeps_images: whether the first stage had the decoded images on its device.
    """

    status: str
    best_epoch: int | None
    weights: State
    last: State
    history: History
    seconds: dict[str, float] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    keeps_images: bool = False


@dataclass(kw_only=True)
class Salvage:
    """What could be had of a run's workers, some of which may be dead. Attributes as of ``RunResult``."""

    weights: State
    last: State
    lost: list[str]
