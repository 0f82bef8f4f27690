"""Supervised contrastive losses: of features, row block by row block with the gradient written out; of similarities."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Similarities at a time: on a CPU they stay in its cache, on a GPU they keep it busy."""


def marginal_contrastive_loss(z: Tensor, labels: Tensor, *, temperature: float, margin: float) -> Tensor:
    """Supervised contrastive loss with a margin on positive pairs.

    With s_ij = z_i·z_j, plus m and at most 1 where i and j are of one class, and P_i the others of i's class:

        L = 1/R Σ_i −1/|P_i| Σ_{p∈P_i} log [exp(s_ip/τ) / Σ_{a≠i} exp(s_ia/τ)]

    Source: Khosla et al. 2020; Aghagolzadeh & Ezoji 2025, eqs. 3 and 15.

    Row i of s is all that anchor i needs, for its loss and its gradient alike. So a block of rows is made, used and
    thrown away, and the (R, R) matrix is never stored; the gradient at z is what is kept for the backward pass.

    Args:
        z: unit-length features (R, C), one row per image and view.
        labels: class of each row (R,) int64.
        temperature: τ.
        margin: m, added to the similarity of positive pairs in numerator and denominator, clipped at 1; no gradient
            flows where it is clipped. 0 gives the plain loss.

    Returns:
        Scalar mean over all rows as anchors. An anchor without a positive contributes 0 and still counts.
    """
    loss: Tensor = _Contrast.apply(z, labels, temperature, margin)  # type: ignore[no-untyped-call]
    return loss


def clipped_share(z: Tensor, labels: Tensor, *, margin: float) -> Tensor:
    """The share () of positive pairs of unit-length features z (R, C) whose similarity plus the margin is above 1."""
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (labels[:, None] == labels[None, :]) & ~own
    return ((z @ z.T + margin > 1) & positive).sum() / positive.sum().clamp(min=1)


def supervised_contrast(logits: Tensor, labels: Tensor) -> Tensor:
    """Supervised contrastive loss of any similarities, such as of features with the label embeddings of a batch.

        L = 1/N Σ_n −1/|P_n| Σ_{p∈P_n} log [exp(s_np) / Σ_{i≠n} exp(s_ni)], P_n the others of n's class

    Source: Khosla et al. 2020, L_out.

    Args:
        logits: s (N, N), over the temperature; row n is the anchor, column i what it is compared with for sample i.
        labels: class of each sample (N,) int64.

    Returns:
        Scalar mean over all anchors. One without a positive contributes 0 and still counts.
    """
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    positive = (labels[:, None] == labels[None, :]) & ~own
    num_positives = positive.sum(dim=1)
    alone = num_positives == 0
    # Rows without positives are left whole: one sample alone would have a row of nothing but -inf.
    log_sum = logits.masked_fill(own & ~alone[:, None], -torch.inf).logsumexp(dim=1)
    mean = torch.where(positive, logits, 0.0).sum(dim=1) / num_positives.clamp(min=1)
    return torch.where(alone, 0.0, log_sum - mean).mean()


def cosine_embedding_contrast(z: Tensor, labels: Tensor, *, margin: float) -> Tensor:
    """The cosine embedding loss of all pairs of a batch.

        L = ½ mean_{(i, j) of one class, i≠j} (1 − z_i·z_j) + ½ mean_{(i, j) of two classes} max(0, z_i·z_j − m)

    Source: torch.nn.CosineEmbeddingLoss, of pairs as Ahamed et al. 2023 make them.

    Args:
        z: unit-length features (N, C).
        labels: class of each (N,) int64.
        margin: m.

    Returns:
        Scalar. A batch without pairs of one kind has the other's half alone, one without any has 0.
    """
    similarity = z @ z.T
    same = labels[:, None] == labels[None, :]
    positive = same & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    apart = torch.where(positive, 1 - similarity, 0.0).sum() / positive.sum().clamp(min=1)
    close = torch.where(same, 0.0, F.relu(similarity - margin)).sum() / (~same).sum().clamp(min=1)
    return (apart + close) / 2


class _Contrast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, labels: Tensor, temperature: float, margin: float) -> Tensor:
        count = len(z)
        rows = max(1, _BLOCK.get(z.device.type, _BLOCK["cuda"]) // count)
        gradient = torch.zeros_like(z) if ctx.needs_input_grad[0] else None
        losses = []
        for start in range(0, count, rows):
            anchors = z[start : start + rows]  # (B, C)
            own = torch.arange(start, start + len(anchors), device=z.device)[:, None]  # (B, 1): each anchor's column
            positive = labels[start : start + rows, None] == labels  # (B, R)
            positive.scatter_(1, own, False)
            similarity = anchors @ z.T
            clipped = None
            if margin:
                similarity.add_(positive, alpha=margin)
                clipped = positive & (similarity > 1)
                similarity.masked_fill_(clipped, 1.0)
            logits = similarity.div_(temperature).scatter_(1, own, -torch.inf)
            log_sum = logits.logsumexp(dim=1, keepdim=True)  # (B, 1)
            num_positives = positive.sum(dim=1, keepdim=True)
            share = 1.0 / num_positives.clamp(min=1).to(z.dtype)
            summed = torch.where(positive, logits, 0.0).sum(dim=1, keepdim=True)  # no product: −inf · 0 is NaN
            alone = num_positives == 0
            losses.append((log_sum - summed * share).masked_fill(alone, 0.0).sum())
            if gradient is None:
                continue
            # ∂L/∂s_ij = (softmax_ij − [j ∈ P_i]/|P_i|) / (R τ), and 0 for an anchor without positives.
            steepness = logits.sub_(log_sum).exp_().sub_(positive * share).masked_fill_(alone, 0.0)
            if clipped is not None:
                steepness.masked_fill_(clipped, 0.0)
            gradient[start : start + rows] += steepness @ z
            gradient.addmm_(steepness.T, anchors)
        if gradient is not None:
            ctx.save_for_backward(gradient.div_(count * temperature))
        return torch.stack(losses).sum() / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * scale, None, None, None
