"""Figures that describe trained layers, from their features, predictions and label embeddings alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_ROWS = 1024  # of a matrix of similarities at a time
_PERPLEXITY = 30.0  # scikit-learn's; van der Maaten & Hinton 2008 take 5 to 50


def confusion(labels: Tensor, guesses: Tensor, num_classes: int) -> Tensor:
    """Images of each class (row) that were taken for each class (column): (Z, Z) int64, from (N,) and (N,)."""
    pairs = labels * num_classes + guesses
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def top_accuracy(labels: Tensor, guesses: Tensor, k: int = 1) -> float:
    """Share of images (N,) whose label is among the first k of their likeliest classes (N, ≥ k)."""
    return float((guesses[:, :k] == labels[:, None]).any(dim=1).double().mean())


def dot_products(embeddings: Tensor) -> Tensor:
    """⟨t_i, t_j⟩ for all label embeddings (Z, C): (Z, Z) float64."""
    t = embeddings.double()
    return t @ t.T


def cosines(embeddings: Tensor) -> Tensor:
    """cos(t_i, t_j) for all label embeddings (Z, C): (Z, Z) float64."""
    return dot_products(F.normalize(embeddings.double(), dim=1))


@dataclass(frozen=True, kw_only=True)
class PairSimilarity:
    """Cosine similarities of all pairs of two different images.

    Attributes:
        same: mean over the pairs of one class; NaN where there is no such pair.
        other: mean over the pairs of two classes; NaN where there is no such pair.
        inside: share of the pairs of one class that are inside the margin, s + m ≥ 1, where the marginal loss pulls
            them no closer (Aghagolzadeh & Ezoji 2025, eqs. 15 and 18); None without a margin.
    """

    same: float
    other: float
    inside: float | None


def pair_similarity(features: Tensor, labels: Tensor, margin: float | None = None) -> PairSimilarity:
    """Of pooled features (N, C) with labels (N,)."""
    z = F.normalize(features.double(), dim=1)
    # Of unit vectors: the products of all pairs add up to the squared length of the sum, those with themselves to N.
    same_sum, num_same, num_inside = 0.0, 0, 0
    for label in labels.unique():
        members = z[labels == label]
        same_sum += float(members.sum(dim=0).square().sum() - members.square().sum())
        num_same += len(members) * (len(members) - 1)
        if margin is not None:
            num_inside += _num_pairs_above(members, 1 - margin)
    all_sum = float(z.sum(dim=0).square().sum() - z.square().sum())
    num_other = len(z) * (len(z) - 1) - num_same
    return PairSimilarity(
        same=same_sum / num_same if num_same else float("nan"),
        other=(all_sum - same_sum) / num_other if num_other else float("nan"),
        inside=num_inside / num_same if margin is not None and num_same else None,
    )


def _num_pairs_above(z: Tensor, least: float) -> int:
    """Ordered pairs of two different rows of (N, C) whose product is at least ``least``."""
    count = 0
    for first in range(0, len(z), _ROWS):
        block = z[first : first + _ROWS] @ z.T
        block[torch.arange(len(block)), torch.arange(first, first + len(block))] = -torch.inf
        count += int((block >= least).sum())
    return count


def goodness_by_label(goodness: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of every image's goodness with every class's label (N, Z): that with its own (N,), and with others (N·(Z−1),)."""
    own = F.one_hot(labels, goodness.shape[1]).bool()
    return goodness[own], goodness[~own]


def scatter(features: Tensor, *, seed: int) -> NDArray[np.float64]:
    """t-SNE of pooled features (N, C), N at least 4: points (N, 2) in a plane. The same for the same seed.

    Source: van der Maaten & Hinton 2008.
    """
    from sklearn.manifold import TSNE  # noqa: PLC0415 (takes a second to import)

    values = features.double().numpy()
    points = TSNE(
        n_components=2,
        perplexity=min(_PERPLEXITY, (len(values) - 1) / 3),
        init="pca" if min(values.shape) >= 2 else "random",
        random_state=seed,
    ).fit_transform(values)
    return np.asarray(points, dtype=np.float64)


def stretch(values: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (rows, columns) over an image of ``size``, bilinear."""
    stretched = F.interpolate(values[None, None], size=size, mode="bilinear", align_corners=False)
    return stretched[0, 0]


@dataclass(frozen=True)
class Anchor:
    """Three images by their index among those analysed: two of one class, one of another."""

    anchor: int
    same: int
    other: int


def choose_anchors(labels: Tensor, order: NDArray[np.int64], count: int) -> list[Anchor]:
    """Anchors of different classes, each with the next image of its class and the next of another; no image twice.

    Args:
        labels: (N,).
        order: a random order of 0 … N−1; the anchors are the first that it brings.
        count: at most so many.
    """
    chosen: list[Anchor] = []
    anchored: set[int] = set()
    left = [(int(image), int(labels[image])) for image in order]
    while left and len(chosen) < count:
        (image, label), *later = left
        same = next((i for i, other in later if other == label), None)
        different = next((i for i, other in later if other != label), None)
        left = later
        if label not in anchored and same is not None and different is not None:
            chosen.append(Anchor(image, same, different))
            anchored.add(label)
            left = [entry for entry in later if entry[0] not in (same, different)]
    return chosen


def anchor_similarities(features: Tensor, anchor: Anchor) -> tuple[float, float]:
    """Cosine similarity of the anchor's feature with that of its class, and with that of the other class."""
    z = F.normalize(features[[anchor.anchor, anchor.same, anchor.other]].double(), dim=1)
    return float(z[0] @ z[1]), float(z[0] @ z[2])


def choose_examples(right: Tensor, labels: Tensor, order: NDArray[np.int64], count: int) -> list[int]:
    """At most ``count`` of the images where ``right`` (N,) is true, in ``order``; a class again only when all were."""
    candidates = [int(i) for i in order if right[i]]
    times: dict[int, int] = {}
    rounds: list[tuple[int, int]] = []  # (how often the class came before, image)
    for image in candidates:
        label = int(labels[image])
        rounds.append((times.get(label, 0), image))
        times[label] = times.get(label, 0) + 1
    return [image for _, image in sorted(rounds, key=lambda entry: entry[0])[:count]]
