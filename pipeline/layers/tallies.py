"""What a pass over a split says of each layer, added up batch by batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config.run_spec import RunSpec
from pipeline.errors import NonFiniteLossError
from pipeline.layers.fisher import WIDEST, FeatureMoments
from pipeline.telemetry.reports import LayerReport


class _Coming:
    """Numbers (n,) on their way from a device to the host."""

    def __init__(self, values: Tensor) -> None:
        self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
        self._host.copy_(values, non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda:
            self._arrived = torch.cuda.current_stream(values.device).record_event()

    def read(self) -> list[float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        numbers: list[float] = self._host.tolist()
        return numbers


class TrainTally:
    """Losses of one layer over a training pass, kept on the device until asked for (reading each would stall a GPU)."""

    def __init__(self, layer: int, *, readout: bool = False) -> None:
        self.layer, self._readout = layer, readout
        self.losses: list[Tensor] = []
        self._skews: list[int] = []
        self._seen = 0
        self._coming: _Coming | None = None

    def add(self, loss: Tensor | None, version_skew: int | None = None) -> None:
        """Adds a step: its loss (), None for a layer that does not learn in it, and ``LayerReport.version_skew``."""
        if loss is not None:
            self.losses.append(loss.detach())
        if version_skew is not None:
            self._skews.append(version_skew)

    def finite_latest(self) -> float:
        """The last step's loss, NaN before the first step. Waits for the device.

        Raises:
            NonFiniteLossError: one of the losses since the last look was not finite.
        """
        if len(self.losses) == self._seen:
            return math.nan if not self.losses else float(self.losses[-1])
        losses = torch.stack(self.losses[self._seen :]).tolist()
        self._coming = None
        self._see(losses)
        return float(losses[-1])

    def look_behind(self) -> None:
        """Looks at the losses up to the last call, whose copy has come meanwhile, and has those since then copied.

        So nothing waits for what the device has still to do, and a loss that is no number shows a call later.

        Raises:
            NonFiniteLossError: as ``finite_latest``.
        """
        if self._coming is not None:
            coming, self._coming = self._coming, None
            self._see(coming.read())
        if len(self.losses) > self._seen:
            self._coming = _Coming(torch.stack(self.losses[self._seen :]))

    def _see(self, losses: Sequence[float]) -> None:
        """These are the next losses that were not seen yet. Raises NonFiniteLossError."""
        for step, loss in enumerate(losses, start=self._seen):
            if not math.isfinite(loss):
                raise NonFiniteLossError(self.layer, loss, readout=self._readout, step=step)
        self._seen += len(losses)

    def snapshot(self) -> tuple[dict[str, Tensor], list[int]]:
        """The losses and version skews of the steps so far."""
        losses = torch.stack(self.losses) if self.losses else torch.zeros(0)
        return {"losses": losses}, list(self._skews)

    def load_snapshot(self, tensors: Mapping[str, Tensor], skews: Sequence[int]) -> None:
        """Goes on from a snapshot."""
        self.losses, self._skews = list(tensors["losses"].unbind()), list(skews)
        self._seen = len(self.losses)

    def report(self, vitals: Mapping[str, float] | None = None) -> LayerReport:
        """What the pass said; of a layer that learned in it also how it is now."""
        losses = torch.stack(self.losses).float().cpu().numpy() if self.losses else np.zeros(0, np.float32)
        mean = float(losses.astype(np.float64).mean()) if len(losses) else math.nan
        skew = sum(self._skews) / len(self._skews) if self._skews else None
        now = dict(vitals or {}) if len(losses) else {}
        return LayerReport(layer=self.layer, losses=losses, loss=mean, version_skew=skew, vitals=now)


class EvaluationTally:
    """Loss, accuracy and Fisher criterion of one layer over a pass that changes nothing."""

    def __init__(self, layer: int, *, num_classes: int, features: int, top_k: int, device: torch.device) -> None:
        self.layer = layer
        self.top_k = min(top_k, num_classes)
        told_apart = num_classes > 1 and features <= WIDEST
        self.moments = FeatureMoments(num_classes, features, device) if told_apart else None
        self.count = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.readout_loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._has_readout = False
        self._hits = _Hits(device)
        self._direct_hits = _Hits(device)
        self.predictions: list[Tensor] = []
        self._figures: dict[str, Tensor] = {}

    @classmethod
    def of(cls, spec: RunSpec, layer: int, features: int, device: torch.device) -> EvaluationTally:
        """The tally of one layer of a run."""
        return cls(layer, num_classes=len(spec.classes), features=features, top_k=spec.top_k, device=device)

    @property
    def is_empty(self) -> bool:
        """Whether no batch has been added."""
        return not self.count

    def show(self, figures: Mapping[str, Tensor]) -> None:
        """Takes what a method has to show of the layer, each a scalar ()."""
        self._figures = {name: value.detach() for name, value in figures.items()}

    def add(
        self, *, loss: Tensor, features: Tensor, labels: Tensor, scores: Tensor | None, direct_scores: Tensor | None
    ) -> None:
        """Adds a batch.

        Args:
            loss: local loss ().
            features: pooled features (N, C).
            labels: (N,).
            scores: the readout's (N, Z), None without one.
            direct_scores: the layer's own (N, Z), None where its method has none.
        """
        self.count += len(labels)
        self.loss_sum += loss.double() * len(labels)
        if self.moments is not None:
            self.moments.add(features, labels)
        if direct_scores is not None:
            self._direct_hits.add(direct_scores, labels, self.top_k)
        if scores is not None:
            self.readout_loss_sum += F.cross_entropy(scores.float(), labels, reduction="sum").double()
        judged = scores if scores is not None else direct_scores
        if judged is not None:
            self.predictions.append(self._hits.add(judged, labels, self.top_k))
        self._has_readout = scores is not None

    def report(self, *, with_predictions: bool = False) -> LayerReport:
        judged = bool(self.predictions)
        fisher = self.moments.fisher() if self.count and self.moments is not None else None
        return LayerReport(
            layer=self.layer,
            losses=np.zeros(0, np.float32),
            loss=float(self.loss_sum) / self.count if self.count else math.nan,
            accuracy=self._hits.share(1, self.count),
            top_k=self._hits.share(self.top_k, self.count),
            direct_accuracy=self._direct_hits.share(1, self.count),
            readout_loss=float(self.readout_loss_sum) / self.count if self._has_readout else None,
            fisher=fisher if fisher is not None and math.isfinite(fisher) else None,
            predictions=torch.cat(self.predictions).cpu().numpy() if judged and with_predictions else None,
            vitals={name: float(value) for name, value in self._figures.items()},
        )


class _Hits:
    """How many images a predictor has right, with its first guess and within its first k."""

    def __init__(self, device: torch.device) -> None:
        self._seen = False
        self._first = torch.zeros((), dtype=torch.int64, device=device)
        self._top = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, scores: Tensor, labels: Tensor, top_k: int) -> Tensor:
        """Adds a batch's scores (N, Z) and labels (N,). Returns the first guesses (N,)."""
        ranked = scores.topk(top_k, dim=1).indices  # (N, k)
        hits = ranked == labels[:, None]
        self._first += hits[:, 0].sum()
        self._top += hits.sum()
        self._seen = True
        return ranked[:, 0]

    def share(self, k: int, count: int) -> float | None:
        """The share of ``count`` images that are right within the first k guesses; None where nothing was guessed."""
        if not self._seen:
            return None
        return int(self._first if k == 1 else self._top) / count
