"""Contrastive Forward-Forward as a researcher would write it: what the product's step is held against.

The same mathematics from the same initial weights, without what the product does to be fast. Each of those things that
is a matter of the loop or the layer can be turned on here by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import rng
from pipeline.config.run_spec import RunSpec
from pipeline.methods import CffSettings
from pipeline.methods.cff import margin
from pipeline.methods.contrastive import marginal_contrastive_loss
from pipeline.nets import Dropout, Layer
from pipeline.nets.attention import attention
from pipeline.nets.vit import EncoderLayer, project_normed


@dataclass(frozen=True, kw_only=True)
class Optimizations:
    """What is turned on.

    Attributes:
        fused_optimizer: AdamW in one kernel.
        blockwise_loss: the loss by blocks of rows, its gradient written out.
        attention_by_products: attention as batched products instead of PyTorch's fused kernel (CPU).
        folded_norm: the first norm within its linear layer, which then sends no gradient back.
        in_parts: so many samples at a time through a layer as a CPU's caches hold.
    """

    fused_optimizer: bool = False
    blockwise_loss: bool = False
    attention_by_products: bool = False
    folded_norm: bool = False
    in_parts: bool = False


class PlainLoop:
    """Every layer in turn: forward, loss, backward, AdamW."""

    def __init__(self, spec: RunSpec, optimizations: Optimizations, device: torch.device) -> None:
        method, train = spec.settings.method, spec.settings.train
        assert isinstance(method, CffSettings), "there is a plain loop of CFF alone"
        self._method, self._tricks = method, optimizations
        self._loss = marginal_contrastive_loss if optimizations.blockwise_loss else plain_loss
        self.layers, self._optimizers = [], []
        for index in range(spec.num_layers):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(rng.torch_seed(train.seed, "init", index))
                layer = spec.net.build(index, spec.shape).to(device)
            for module in layer.modules():
                if isinstance(module, Dropout):
                    module.generator = torch.Generator(device)
            self.layers.append(layer)
            self._optimizers.append(
                torch.optim.AdamW(
                    layer.parameters(),
                    lr=train.lr,
                    weight_decay=train.weight_decay,
                    fused=optimizations.fused_optimizer or None,
                )
            )

    def step(self, views: Tensor, labels: Tensor) -> Tensor:
        """One update of every layer from views (V·N, channels, H, W). Returns the last layer's loss ()."""
        x, labels = views, labels.repeat(self._method.views)
        for index, (layer, optimizer) in enumerate(zip(self.layers, self._optimizers, strict=True)):
            room = (layer.at_a_time or len(x)) * torch.get_num_threads()
            parts = x.split(room) if self._tricks.in_parts else [x]
            h = torch.cat([self._forward(layer, part) for part in parts])
            z = F.normalize(layer.pool(h), dim=1)
            m = margin(self._method, index, len(self.layers))
            loss = self._loss(z, labels, temperature=self._method.temperature, margin=m)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            x = h.detach()
        return loss.detach()

    def _forward(self, layer: Layer, x: Tensor) -> Tensor:
        return encode(layer, x, self._tricks) if isinstance(layer, EncoderLayer) else layer(x)


def encode(layer: EncoderLayer, x: Tensor, optimizations: Optimizations) -> Tensor:
    """An encoder layer as papers have it, of tokens (N, T, E) or, in the first layer, of images."""
    if layer.embedding is not None:
        x = layer.embedding(x)
    qkv = project_normed(layer.norm1, layer.qkv, x) if optimizations.folded_norm else layer.qkv(layer.norm1(x))
    mixed = attention(qkv, layer.heads) if optimizations.attention_by_products else _kernel_attention(qkv, layer.heads)
    x = x + layer.project(mixed)
    encoded: Tensor = x + layer.contract(F.gelu(layer.expand(layer.norm2(x))))
    return encoded


def _kernel_attention(qkv: Tensor, heads: int) -> Tensor:
    n, t, width = qkv.shape
    e = width // 3
    q, k, v = qkv.view(n, t, 3, heads, e // heads).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, e)


def plain_loss(z: Tensor, labels: Tensor, *, temperature: float, margin: float) -> Tensor:
    """The marginal contrastive loss as one writes it down (Aghagolzadeh & Ezoji 2025, eqs. 3 and 15).

    Args:
        z: unit-length features (R, C).
        labels: class of each row (R,).
    """
    similarity = z @ z.T  # (R, R)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    similarity = torch.where(positive, torch.clamp(similarity + margin, max=1.0), similarity)
    logits = (similarity / temperature).masked_fill(itself, -torch.inf)
    log_probability = logits - logits.logsumexp(dim=1, keepdim=True)
    summed = log_probability.masked_fill(~positive, 0.0).sum(dim=1)
    return -(summed / positive.sum(dim=1).clamp(min=1)).mean()
