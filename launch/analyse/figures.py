"""`launch analyse RUN`: what every layer of a run has learned, as figures, numbers and pictures in RUN/analysis/."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor

from launch.output.open_run import OpenRun
from pipeline import rng
from pipeline.analysis import figures
from pipeline.analysis.figures import Anchor, PairSimilarity
from pipeline.analysis.layers import LayerRecord, attention, fisher, record
from pipeline.analysis.superclasses import SuperClasses
from pipeline.config.run_spec import RunSpec
from pipeline.data.loader import Batch, Split
from pipeline.data.sources.base import Progress
from pipeline.errors import UserError
from pipeline.export import Network
from pipeline.layers.fisher import FeatureMoments

_ANCHORS = 3
_MAPPED = 4  # layers of an attention map at most
_FEWEST = 4  # images that t-SNE needs


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What every layer of a run has learned: figures, numbers and pictures, in RUN/analysis/ and in TensorBoard.

    Accuracy, confusion, Fisher criterion, similarity of images and t-SNE of every layer; with label embeddings their
    similarities and attention maps over images; with a margin the pairs inside it; goodness where labels are shown.
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""
    split: Literal["test", "validate"] = "test"
    """Whose images. The Fisher criterion is that of the validation images besides, as in Aghagolzadeh & Ezoji 2025."""
    images: int | None = None
    """So many of them, drawn by the seed. Default: all."""
    tsne_images: int = 1000
    """So many of these for t-SNE; 0 for none."""
    examples: int = 4
    """Attention maps of so many images predicted right, and as many predicted wrong; 0 for none."""
    superclasses: str | None = None
    """Have classes stand in groups in matrices: cifar100, cifar10-animals, cifar10-finer, fashion-mnist, or a FILE as
    for `launch eval`."""
    format: Literal["pdf", "svg"] = "pdf"
    """Of each picture's second file, beside its PNG: lines and letters that stay sharp at any size. pdf is what LaTeX
    includes, svg what a browser shows."""
    batch_size: int | None = None
    """Images at a time. Default: the run's."""
    seed: int = 0
    """Of every choice of images, and of t-SNE."""

    def check(self) -> None:
        """Raises UserError where a value is out of range."""
        for name, value, least in (
            ("--images", self.images, 2),
            ("--tsne-images", self.tsne_images, 0),
            ("--examples", self.examples, 0),
            ("--batch-size", self.batch_size, 1),
        ):
            if value is not None and value < least:
                raise UserError(f"{name} {value}: must be at least {least}.")


@dataclass(frozen=True, kw_only=True)
class LayerFigures:
    """What an analysis says about one layer.

    Attributes:
        record: its features and predictions.
        fisher: Fisher criterion of the analysed images' features; None without two classes.
        fisher_validation: of all validation images', as Aghagolzadeh & Ezoji 2025 have it (Fig. 5).
        pairs: similarities of the analysed images' features.
        confusion: images of each class (row) predicted as each class (column), (Z, Z); None without a prediction.
        anchors: for each anchor the cosine similarity with its class and with the other.
        goodness: with images' own labels (N,), and with others (N·(Z−1),); None for methods that show no labels.
        scatter: t-SNE of the images in ``Analysis.scattered`` (n, 2); None where they are too few.
        maps: attention by image: (2, rows, columns) for the network's two likeliest classes; empty where the layer
            has no label embeddings or no grid, or is left out for space.
    """

    record: LayerRecord
    fisher: float | None
    fisher_validation: float | None
    pairs: PairSimilarity
    confusion: Tensor | None
    anchors: list[tuple[float, float]]
    goodness: tuple[Tensor, Tensor] | None
    scatter: NDArray[np.float64] | None
    maps: dict[int, Tensor]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """All figures of a run. Images go by their index among those analysed.

    Attributes:
        labels: (N,).
        num_validation: images that ``LayerFigures.fisher_validation`` is of.
        ids: the images' indices in their split on disk.
        scattered: images that t-SNE shows.
        anchors: images of ``LayerFigures.anchors``.
        right, wrong: images of ``LayerFigures.maps``, by whether the network predicts their class.
        images: (channels, H, W) uint8 of anchors and examples.
    """

    spec: RunSpec
    wishes: Wishes
    superclasses: SuperClasses | None
    labels: Tensor
    num_validation: int
    ids: list[int]
    layers: list[LayerFigures]
    scattered: NDArray[np.int64]
    anchors: list[Anchor]
    right: list[int]
    wrong: list[int]
    images: dict[int, Tensor]

    @property
    def guesses(self) -> Tensor | None:
        """The network's likeliest classes (N, k): those of its last layer."""
        return self.layers[-1].record.guesses


def analyse(opened: OpenRun, wishes: Wishes, superclasses: SuperClasses | None, *, progress: Progress) -> Analysis:
    """Computes all figures of a run."""
    spec, network, split = opened.spec, opened.network(), wishes.split
    num_classes = len(spec.classes)
    reader = _Reader(opened, wishes, progress)
    records, labels = record(network, reader.pairs(split, reader.chosen), top=min(max(2, spec.top_k), num_classes))
    whole = split == "validate" and len(labels) == opened.dataset.count("validate")
    of_split: Sequence[float | None] = [None for _ in records]
    of_validation = of_split
    if num_classes > 1:
        of_split = [_fisher(layer.features, labels, num_classes) for layer in records]
        of_validation = of_split if whole else fisher(network, reader.pairs("validate"))

    order: NDArray[np.int64] = rng.generator(wishes.seed, "analyse-order").permutation(len(labels))
    scattered = order[: wishes.tsne_images]
    anchors = figures.choose_anchors(labels, order, _ANCHORS)
    mapped = _mapped(records)
    right, wrong = _examples(records, labels, order, wishes.examples) if mapped else ([], [])
    images = reader.fetch([*right, *wrong, *(image for a in anchors for image in (a.anchor, a.same, a.other))])
    maps = _maps(network, records, mapped, {index: images[index] for index in (*right, *wrong)}, opened.device)

    layers = []
    for number, layer in enumerate(records):
        scatter = None
        if len(scattered) >= _FEWEST:
            progress("t-SNE", number, len(records))
            scatter = figures.scatter(layer.features[scattered], seed=wishes.seed)
        guesses = layer.guesses
        layers.append(
            LayerFigures(
                record=layer,
                fisher=of_split[number],
                fisher_validation=of_validation[number],
                pairs=figures.pair_similarity(layer.features, labels, layer.margin),
                confusion=None if guesses is None else figures.confusion(labels, guesses[:, 0], num_classes),
                anchors=[figures.anchor_similarities(layer.features, anchor) for anchor in anchors],
                goodness=None if layer.goodness is None else figures.goodness_by_label(layer.goodness, labels),
                scatter=scatter,
                maps=maps.get(layer.index, {}),
            )
        )
    if len(scattered) >= _FEWEST:
        progress("t-SNE", len(records), len(records))
    return Analysis(
        spec=spec,
        wishes=wishes,
        superclasses=superclasses,
        labels=labels,
        num_validation=opened.dataset.count("validate"),
        ids=reader.ids,
        layers=layers,
        scattered=scattered if len(scattered) >= _FEWEST else scattered[:0],
        anchors=anchors,
        right=right,
        wrong=wrong,
        images=images,
    )


class _Reader:
    """Reads a run's images, those of an analysis among them."""

    def __init__(self, opened: OpenRun, wishes: Wishes, progress: Progress) -> None:
        self._opened, self._split, self._progress = opened, wishes.split, progress
        self._batch_size = wishes.batch_size or opened.spec.settings.train.batch_size
        total = opened.dataset.count(wishes.split)
        count = min(total, wishes.images or total)
        drawn = rng.generator(wishes.seed, "analyse-images").permutation(total)[:count]
        self.chosen: NDArray[np.int64] = np.sort(drawn)
        """Indices in the split of the images that are analysed."""
        self.ids: list[int] = []
        """Their indices on disk, once they have been read."""

    def pairs(self, split: Split, indices: NDArray[np.int64] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images, on the device, and labels of a split, batch by batch: all, or those at ``indices``."""
        total = self._opened.dataset.num_batches(split, self._batch_size)
        name = "validation" if split == "validate" else split
        for batch in self._batches(split):
            rows = np.arange(batch.position, batch.position + len(batch.labels))
            kept = torch.from_numpy(np.ones(len(rows), dtype=bool) if indices is None else np.isin(rows, indices))
            if indices is not None:
                self.ids += batch.ids[kept].tolist()
            if kept.any():
                yield batch.images[kept].to(self._opened.device), batch.labels[kept]
            self._progress(f"{name} images", batch.step + 1, total)

    def fetch(self, wanted: Sequence[int]) -> dict[int, Tensor]:
        """Images (channels, H, W) uint8 by their index among those analysed."""
        indices = {int(self.chosen[image]): image for image in wanted}
        fetched: dict[int, Tensor] = {}
        for batch in self._batches(self._split):
            if len(fetched) == len(indices):
                break
            for index in indices.keys() & set(range(batch.position, batch.position + len(batch.labels))):
                fetched[indices[index]] = batch.images[index - batch.position].clone()
        return fetched

    def _batches(self, split: Split) -> Iterator[Batch]:
        return self._opened.dataset.batches(split, epoch=0, batch_size=self._batch_size)


def _fisher(features: Tensor, labels: Tensor, num_classes: int) -> float:
    moments = FeatureMoments(num_classes, features.shape[1], features.device)
    moments.add(features, labels)
    return moments.fisher()


def _mapped(records: Sequence[LayerRecord]) -> list[LayerRecord]:
    """Layers whose attention can be drawn over an image; of more than four the first, the last and two between."""
    able = [layer for layer in records if layer.targets is not None and layer.grid is not None]
    indices = np.linspace(0, len(able) - 1, min(_MAPPED, len(able))).round().astype(int)
    return [able[index] for index in indices]


def _examples(
    records: Sequence[LayerRecord], labels: Tensor, order: NDArray[np.int64], count: int
) -> tuple[list[int], list[int]]:
    """Images that the network predicts right, and images that it predicts wrong."""
    guesses = records[-1].guesses
    assert guesses is not None, "layers with label embeddings predict"
    right = guesses[:, 0] == labels
    return (
        figures.choose_examples(right, labels, order, count),
        figures.choose_examples(~right, labels, order, count),
    )


def _maps(
    network: Network,
    records: Sequence[LayerRecord],
    mapped: Sequence[LayerRecord],
    images: dict[int, Tensor],
    device: torch.device,
) -> dict[int, dict[int, Tensor]]:
    """By layer and image: the maps (2, rows, columns) of the network's two likeliest classes."""
    guesses = records[-1].guesses
    if not images or guesses is None:
        return {}
    classes = guesses[list(images), :2].to(device)
    shown = {layer.index for layer in mapped}
    maps: dict[int, dict[int, Tensor]] = {}
    for view in network.outputs(torch.stack(list(images.values())).to(device)):
        if view.index in shown:
            maps[view.index] = dict(zip(images, attention(view, classes).cpu(), strict=True))
    return maps
