"""What a layer's features are worth: Fisher criterion and accuracy, accumulated batch by batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WIDEST = 1536
"""Features of which an evaluation computes the criterion at most: of more it would take longer than to train."""


class FeatureMoments:
    """Sums over pooled features from which the Fisher criterion follows, in float64.

    Sums over one-hot products, not index_add: the latter adds in any order on CUDA.
    """

    def __init__(self, num_classes: int, features: int, device: torch.device) -> None:
        self.counts = torch.zeros(num_classes, dtype=torch.float64, device=device)  # (K,)
        self.sums = torch.zeros(num_classes, features, dtype=torch.float64, device=device)  # (K, C)
        self.products = torch.zeros(features, features, dtype=torch.float64, device=device)  # (C, C)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Adds pooled features (N, C) with labels (N,)."""
        h = features.double()
        one_hot = torch.nn.functional.one_hot(labels, len(self.counts)).double()  # (N, K)
        self.counts += one_hot.sum(dim=0)
        self.sums += one_hot.T @ h
        self.products += h.T @ h

    def fisher(self) -> float:
        """Fisher's criterion trace(S_W⁻¹ S_B) of the features seen so far; no number where a feature is none.

        Source: Fisher 1936; Aghagolzadeh & Ezoji 2025, eqs. 19-22.

        A within-class scatter that cannot be inverted (fewer samples than features, a dead feature) is
        pseudo-inverted, so directions without any spread count nothing.
        """
        present = self.counts > 0
        counts, sums = self.counts[present].cpu(), self.sums[present].cpu()
        total = counts.sum()
        if total == 0:
            return 0.0
        class_means = sums / counts[:, None]
        within = self.products.cpu() - (class_means * counts[:, None]).T @ class_means
        if not torch.isfinite(within).all():  # eigenvalues are not to be had; that the run has failed, its loss says
            return math.nan
        centred = class_means - sums.sum(dim=0) / total
        between = (centred * counts[:, None]).T @ centred
        return float(torch.trace(torch.linalg.pinv(within, hermitian=True, rtol=1e-10) @ between))
