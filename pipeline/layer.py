"""One locally trained layer: its net, its rule, its optimizer and its readout. The unit that every executor runs."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import keys
from pipeline.errors import NonFiniteLossError
from pipeline.metrics import EvaluationTally
from pipeline.rules import Streams
from pipeline.spec import RunSpec

State = dict[str, Tensor]
"""Flat names → tensors, such as ``layers.2.net.qkv.weight`` or ``layers.2.optimizer.qkv.weight.exp_avg``."""


def nowhere(streams: Streams) -> None:
    """Sends nothing: the next layer is in the same stage, or there is none."""


class Readout(nn.Module):
    """Linear classifier on pooled features: LayerNorm → Linear, trained by cross-entropy (methods.md §1, stage 2)."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.linear = nn.Linear(features, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.linear(self.norm(features))
        return scores


class LocalLayer:
    """Layer ``index`` of a run. Its numbers depend on the spec and its index alone, not on which stage holds it."""

    def __init__(self, spec: RunSpec, index: int, device: torch.device) -> None:
        settings = spec.settings
        self.index = index
        self._prefix = f"layers.{index}"
        self.device = device
        self.rule = settings.method.build(index, spec.num_layers)
        self._precision = torch.bfloat16 if settings.pipeline.precision == "bf16" else None
        # Initial weights are drawn on the CPU, so that a GPU starts from the same ones.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keys.torch_seed(settings.train.seed, "init", index))
            self.net = settings.net.build(index, spec.shape).to(device)
            torch.manual_seed(keys.torch_seed(settings.train.seed, "init-readout", index))
            self.readout = Readout(self.net.features, len(spec.classes)).to(device)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=settings.train.lr, weight_decay=settings.train.weight_decay, fused=True
        )
        self.readout_optimizer = torch.optim.AdamW(self.readout.parameters(), lr=settings.head.head_lr, fused=True)
        self.readout_trained = False
        # Reading a loss is free on a CPU and stalls a GPU. There the losses are looked at now and then, and until then
        # this flag, which never falls, keeps the fused optimizer from applying an update that is no number.
        self._not_finite = torch.zeros((), device=device) if device.type == "cuda" else None
        # Held while weights change, so that another thread (an interrupt) can copy them between two updates.
        self._updating = threading.Lock()

    def forward(self, streams: Streams) -> Streams:
        with torch.autocast(self.device.type, dtype=self._precision, enabled=self._precision is not None):
            return self.rule.forward(self.net, streams)

    def train(
        self, streams: Streams, labels: Tensor, *, with_readout: bool, send: Callable[[Streams], None] = nowhere
    ) -> tuple[Streams, Tensor]:
        """One local update. Returns what is passed on and the loss ().

        ``send`` gets what is passed on before the backward pass begins, so that the next stage need not wait for it.

        Raises:
            NonFiniteLossError: on CPU, before the update. On CUDA the caller looks at the losses at intervals; no
                update is made from the bad one on.
        """
        outputs = self.forward(streams)
        passed = self.rule.pass_on(outputs)
        send(passed)
        loss = self.rule.loss(self.net, outputs, labels)
        if self._not_finite is None:
            if not torch.isfinite(loss):
                raise NonFiniteLossError(self.index, loss.item())
        else:
            self._not_finite = torch.maximum(self._not_finite, (~torch.isfinite(loss.detach())).float())
            self.optimizer.found_inf = self._not_finite  # type: ignore[attr-defined]  # what GradScaler tells it, too
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        with self._updating:
            self.optimizer.step()
        if with_readout:
            self._update_readout(outputs, labels)
        return passed, loss.detach()

    def train_readout(
        self, streams: Streams, labels: Tensor, *, send: Callable[[Streams], None] = nowhere
    ) -> tuple[Streams, Tensor]:
        """One update of the readout on the frozen layer. Returns what is passed on and the cross-entropy ()."""
        with torch.no_grad():
            outputs = self.forward(streams)
        passed = self.rule.pass_on(outputs)
        send(passed)
        return passed, self._update_readout(outputs, labels)

    def _update_readout(self, outputs: Streams, labels: Tensor) -> Tensor:
        features = self.rule.features(self.net, outputs).detach().float()  # (V·N, C)
        loss = F.cross_entropy(self.readout(features), labels.repeat(len(features) // len(labels)))
        if self.device.type == "cpu" and not torch.isfinite(loss):
            raise NonFiniteLossError(self.index, loss.item(), readout=True)
        self.readout_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        with self._updating:
            self.readout_optimizer.step()
            self.readout_trained = True
        return loss.detach()

    @torch.no_grad()
    def evaluate(
        self,
        streams: Streams,
        labels: Tensor,
        tally: EvaluationTally,
        *,
        send: Callable[[Streams], None] = nowhere,
    ) -> Streams:
        """Adds the batch to the tally; returns what is passed on. Changes nothing."""
        outputs = self.forward(streams)
        passed = self.rule.pass_on(outputs)
        send(passed)
        features = self.rule.features(self.net, outputs).float()
        scores = self.readout(features) if self.readout_trained else None
        tally.add(self.rule.loss(self.net, outputs, labels), features, labels, scores)
        return passed

    def weights(self) -> State:
        """Copies of the layer's and, once trained, its readout's parameters. Safe from any thread."""
        with self._updating:
            return self._weights()

    def _weights(self) -> State:
        state = {f"{self._prefix}.net.{name}": _copy(value) for name, value in self.net.state_dict().items()}
        if self.readout_trained:
            state |= {f"{self._prefix}.readout.{name}": _copy(v) for name, v in self.readout.state_dict().items()}
        return state

    def load_weights(self, state: State) -> None:
        """Takes weights that ``weights`` returned."""
        readout = _below(state, f"{self._prefix}.readout.")
        with self._updating:
            self.net.load_state_dict(_below(state, f"{self._prefix}.net."))
            if readout:
                self.readout.load_state_dict(readout)
                self.readout_trained = True

    def state(self) -> State:
        """Weights and optimizer states: everything that the next update depends on. Safe from any thread."""
        with self._updating:
            state = self._weights()
            state |= _optimizer_state(self.optimizer, self.net, f"{self._prefix}.optimizer.")
            state |= _optimizer_state(self.readout_optimizer, self.readout, f"{self._prefix}.readout_optimizer.")
        return state


def is_finite(state: State) -> bool:
    """Whether every number in it is one: a gradient can spoil weights a step before a loss shows it."""
    return all(bool(torch.isfinite(value).all()) for value in state.values())


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone() if tensor.is_cuda else tensor.detach().clone()


def _below(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _optimizer_state(optimizer: torch.optim.Optimizer, module: nn.Module, prefix: str) -> State:
    return {
        f"{prefix}{name}.{field}": _copy(value)
        for name, parameter in module.named_parameters()
        for field, value in optimizer.state.get(parameter, {}).items()
    }
