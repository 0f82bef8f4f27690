"""What each layer of a trained network makes of images: features, predictions and what its method offers besides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.export import LayerOutputs, Network
from pipeline.layers.fisher import FeatureMoments


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One layer on all images of an analysis, on the CPU.

    Attributes:
        index: 0-based.
        features: pooled features (N, C), float32.
        readout: the k likeliest classes (N, k) by the readout, likeliest first; None without one.
        direct: the same by the layer itself; None where its method cannot.
        targets: label embeddings (Z, C) as the layer sees them; None for methods without any.
        goodness: of every image with every class's label (N, Z); None for methods that show no labels.
        margin: the rule's, where it has one above 0.
        grid: rows and columns of the feature vectors over an image; None where they belong to no position in it.
    """

    index: int
    features: Tensor
    readout: Tensor | None
    direct: Tensor | None
    targets: Tensor | None
    goodness: Tensor | None
    margin: float | None
    grid: tuple[int, int] | None

    @property
    def guesses(self) -> Tensor | None:
        """The k likeliest classes (N, k) as the network predicts at this layer; None where neither predicts."""
        return self.readout if self.readout is not None else self.direct


@torch.no_grad()
def record(network: Network, batches: Iterable[tuple[Tensor, Tensor]], *, top: int) -> tuple[list[LayerRecord], Tensor]:
    """Every layer on all images, and their labels (N,).

    Args:
        batches: images, as ``Network.features`` takes them, and labels.
        top: so many likeliest classes of each image are kept.
    """
    recorders: dict[int, _Recorder] = {}
    labels: list[Tensor] = []
    for images, true in batches:
        labels.append(true.cpu())
        for view in network.outputs(images):
            recorders.setdefault(view.index, _Recorder(view)).add(view, top)
    return [recorder.record() for recorder in recorders.values()], torch.cat(labels)


@torch.no_grad()
def fisher(network: Network, batches: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """Fisher criterion of every layer's pooled features, from batches of images and labels."""
    moments: dict[int, FeatureMoments] = {}
    for images, labels in batches:
        for view in network.outputs(images):
            h = view.features
            if view.index not in moments:
                moments[view.index] = FeatureMoments(len(network.classes), h.shape[1], h.device)
            moments[view.index].add(h, labels.to(h.device))
    return [moment.fisher() for moment in moments.values()]


class _Recorder:
    """Collects one layer's record, batch by batch."""

    def __init__(self, first: LayerOutputs) -> None:
        self._index, self._margin, self._grid = first.index, first.rule.margin, first.layer.grid
        self._targets = None if first.targets is None else first.targets.cpu()
        self._features: list[Tensor] = []
        self._readout: list[Tensor] = []
        self._direct: list[Tensor] = []
        self._goodness: list[Tensor] = []

    def add(self, view: LayerOutputs, top: int) -> None:
        self._features.append(view.features.cpu())
        if view.goodness is not None:
            self._goodness.append(view.goodness.cpu())
        for guesses, scores in ((self._readout, view.readout), (self._direct, view.direct)):
            if scores is not None:
                guesses.append(scores.topk(min(top, scores.shape[1]), dim=1).indices.cpu())

    def record(self) -> LayerRecord:
        return LayerRecord(
            index=self._index,
            features=torch.cat(self._features),
            readout=torch.cat(self._readout) if self._readout else None,
            direct=torch.cat(self._direct) if self._direct else None,
            targets=self._targets,
            goodness=torch.cat(self._goodness) if self._goodness else None,
            margin=self._margin or None,
            grid=self._grid,
        )


@torch.no_grad()
def attention(view: LayerOutputs, classes: Tensor) -> Tensor:
    """How similar each feature vector is to label embeddings, as the run compares them: maps (N, K, rows, columns).

    In the mean over its positions a map is the class's score by which the layer predicts, where features are pooled to
    the mean. Source: Anonymous 2023, Figs. 2-5.

    Args:
        view: of a layer with label embeddings and a grid.
        classes: K classes of each image (N, K).
    """
    assert view.targets is not None and view.layer.grid is not None, "the caller has looked"
    tokens, num = view.tokens(), len(classes)  # (N, T, C)
    compared = view.rule.compared(tokens.flatten(0, 1))
    similarities = view.rule.compare(compared, view.targets).reshape(*tokens.shape[:2], -1)  # (N, T, Z)
    picked = similarities.gather(2, classes[:, None, :].expand(-1, similarities.shape[1], -1))  # (N, T, K)
    return picked.transpose(1, 2).reshape(num, -1, *view.layer.grid)
