"""What a rank holds of the net: all of it, or a stage's layers; the last stage also the classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from launch.bench.backprop.job import Job
from pipeline import rng
from pipeline.config.run_spec import RunSpec
from pipeline.layers.compile import compiled
from pipeline.layers.layer import LocalLayer
from pipeline.layers.state import State
from pipeline.methods import BatchPosition
from pipeline.methods.baseline import EndToEndRule
from pipeline.nets import Dropout
from pipeline.nets.base import Layer
from pipeline.nets.whole import WholeLayer


class Part(nn.Module):
    """Consecutive layers of the net. Images or the stage before's activations in; activations or scores (N, Z) out.

    The initial weights are those of ``LocalLayer``, whoever holds the layer.

    Args:
        how: "on" compiles each layer on its own: layers of one shape compile once, and DDP sends a layer's gradients
            while earlier layers work. "graphs" makes one CUDA graph of all of them. None compiles nothing.

    Attributes:
        cuts: what crosses each cut of the net, for one image (1, …), on the meta device.
    """

    def __init__(self, job: Job, rank: int, how: Literal["on", "graphs"] | None) -> None:
        super().__init__()
        settings, device = job.spec.settings, job.device(rank)
        self._seed, self._rank, self._device_type = settings.train.seed, rank, device.type
        self._precision = torch.bfloat16 if settings.pipeline.precision == "bf16" else None
        self._transfer_dtype = torch.bfloat16 if settings.pipeline.transfer_dtype == "bf16" else None
        self._held = job.stages[rank if len(job.stages) > 1 else 0]

        net, rule = _whole(job.spec, device)
        self.cuts = self._dry_run(job, net, device)
        self.layers = nn.ModuleList(net.inner[index] for index in self._held)
        self.rule = rule if self._held[-1] == len(net.inner) - 1 else None
        self._generator = torch.Generator(device)
        for module in self.modules():
            if isinstance(module, Dropout):
                module.generator = self._generator
        self.train()
        self._graph: Callable[[Tensor], Tensor] | None = None
        if how == "graphs":
            self._graph = compiled(self._through, "graphs")
        elif how == "on":
            for layer in self.layers:
                layer.forward = compiled(layer.forward, "on")

    def forward(self, x: Tensor) -> Tensor:
        if self._held[0] and self._transfer_dtype is not None:
            x = x.float()
        with self._autocast():
            x = self._through(x) if self._graph is None else self._graph(x)
        if self.rule is not None:
            return self.rule.classify(cast(Layer, self.layers[-1]), x)
        return self._packed(x)

    def _through(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def layer(self, number: int, x: Tensor) -> Tensor:
        """One of its layers alone: activations out, scores of the net's last one."""
        with self._autocast():
            x = self.layers[number](x)
        if self.rule is None or number + 1 < len(self.layers):
            return x
        return self.rule.classify(cast(Layer, self.layers[number]), x)

    def draw_anew(self, where: BatchPosition) -> None:
        """Seeds what dropout draws in a step."""
        self._generator.manual_seed(rng.torch_seed(self._seed, "layer", self._rank, where.step))

    def state(self) -> State:
        """The weights, on the CPU, named as ``LocalLayer.weights`` names them."""
        state = {
            f"layers.0.net.layers.{index}.{name}": value
            for index, layer in zip(self._held, self.layers, strict=True)
            for name, value in layer.state_dict().items()
        }
        if self.rule is not None:
            state |= {f"layers.0.rule.{name}": value for name, value in self.rule.state_dict().items()}
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    def _dry_run(self, job: Job, net: WholeLayer, device: torch.device) -> list[Tensor]:
        cuts, ends = [], {layers[-1] for layers in job.stages[:-1]}
        net.eval()  # running statistics stay, and nothing is dropped
        with torch.no_grad(), self._autocast():
            x = torch.zeros(1, *job.spec.shape, device=device)
            for index, layer in enumerate(net.inner):
                x = layer(x)
                if index in ends:
                    cuts.append(self._packed(x).to("meta"))
        return cuts

    def _packed(self, x: Tensor) -> Tensor:
        """Activations as they go over a cut."""
        return (x if self._transfer_dtype is None else x.to(self._transfer_dtype)).contiguous()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device_type, dtype=self._precision, enabled=self._precision is not None)


def _whole(spec: RunSpec, device: torch.device) -> tuple[WholeLayer, EndToEndRule]:
    """The whole net and its classifier with the run's initial weights."""
    eager = replace(spec.settings, pipeline=replace(spec.settings.pipeline, compile="off"))
    layer = LocalLayer(replace(spec, settings=eager), 0, device)
    assert isinstance(layer.net, WholeLayer) and isinstance(layer.rule, EndToEndRule), "a baseline's net is one piece"
    return layer.net, layer.rule
