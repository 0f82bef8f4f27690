"""How a batch goes through one layer: the same in training, evaluation, export, sizing and analysis.

What a layer puts out depends on its weights and on the arithmetic that is set here, not on who asks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.settings import PipelineSettings, Precision, TransferDtype
from pipeline.layers.compile import compiled
from pipeline.layers.joined import JOINED, JoinedFeatures
from pipeline.layers.transfer_dtype import cast_received, cast_to_send
from pipeline.methods import Activations, Rule, StepContext
from pipeline.nets import Layer


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """What the bits of a layer's outputs depend on beside weights and input.

    Attributes:
        precision: of the matrix products.
        transfer_dtype: precision in which layers pass activations on.
        threads: CPU threads of the run. The batch goes through a layer in parts as large as their caches hold, by the
            run's setting and not by the machine's.
    """

    precision: Precision = "fp32"
    transfer_dtype: TransferDtype = "fp32"
    threads: int = 1

    @classmethod
    def of(cls, pipe: PipelineSettings) -> Arithmetic:
        """That of a run."""
        return cls(precision=pipe.precision, transfer_dtype=pipe.transfer_dtype, threads=pipe.threads)


@dataclass(frozen=True)
class Outputs:
    """What a layer makes of a batch.

    Attributes:
        own: its rule's outputs.
        arrived: what came along for readouts that see earlier layers, float32; None where nothing did.
    """

    own: Activations
    arrived: Tensor | None = None


class LayerForward:
    """The forward pass of one layer by its rule.

    Args:
        joined: what the layer's readout sees of earlier layers, and what travels on.
        compiles: whether the training pass is compiled. Evaluation never is: it has other shapes and takes a small
            part of the time.
    """

    def __init__(
        self,
        net: Layer,
        rule: Rule,
        joined: JoinedFeatures,
        arithmetic: Arithmetic,
        *,
        compiles: bool = False,
    ) -> None:
        self._net, self._rule, self._joined = net, rule, joined
        self._transfer_dtype = arithmetic.transfer_dtype
        self._autocast = torch.bfloat16 if arithmetic.precision == "bf16" else None
        self._cache_room = arithmetic.threads * (2 if self._autocast is not None else 1)  # of the threads' caches
        self._training = compiled(rule.forward, "on") if compiles else None

    def outputs(self, activations: Activations, context: StepContext, *, training: bool = False) -> Outputs:
        """The layer's outputs for what the layer before sent.

        Args:
            training: whether the layer learns from them, so that the compiled pass is used.
        """
        run = self._training if training and self._training is not None else self._rule.forward
        device = next(iter(activations.values())).device
        activations, arrived = self._joined.arrived(activations)
        if arrived is not None:
            arrived = cast_received({JOINED: arrived}, self._transfer_dtype)[JOINED]
        with nullcontext() if self._autocast is None else torch.autocast(device.type, dtype=self._autocast):
            parts = [self._part(run, part, context) for part in self._parts(activations, device)]
        outputs = (
            parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        )
        return Outputs(outputs, arrived)

    def to_send(self, outputs: Outputs, context: StepContext, *, for_readouts: bool) -> Activations:
        """What the next layer receives of the outputs, as it is sent.

        Args:
            for_readouts: whether readouts are trained or looked at with this batch, so that what those of later layers
                see of this one and of earlier ones goes along.
        """
        sent = self._rule.outputs_to_send(self._net, outputs.own, context)
        if for_readouts and self._joined.goes_on:
            own = self._own_readout_input(outputs).detach()
            sent = {**sent, JOINED: self._joined.onward(own, outputs.arrived)}
        return cast_to_send(sent, self._transfer_dtype)

    def features(self, outputs: Outputs) -> Tensor:
        """Pooled features (V·N, C), float32."""
        return self._rule.features(self._net, outputs.own).float()

    def readout_input(self, outputs: Outputs) -> Tensor:
        """What a readout of the layer sees (V·N, width), float32."""
        return self._joined.seen(self._own_readout_input(outputs), outputs.arrived)

    def _own_readout_input(self, outputs: Outputs) -> Tensor:
        return self._rule.readout_input(self._net, outputs.own).float()

    def _part(
        self, run: Callable[[Layer, Activations, StepContext], Activations], part: Activations, context: StepContext
    ) -> Activations:
        return run(self._net, cast_received(part, self._transfer_dtype), context)

    def _parts(self, activations: Activations, device: torch.device) -> list[Activations]:
        """The batch in as many parts as go through a CPU's caches well. How many follows from the layer alone."""
        at_a_time = self._net.at_a_time
        if at_a_time is None or not self._rule.per_sample or device.type != "cpu":
            return [activations]
        count = -(-max(len(tensor) for tensor in activations.values()) // (at_a_time * self._cache_room))
        split = {name: tensor.tensor_split(count) for name, tensor in activations.items()}
        return [{name: parts[number] for name, parts in split.items()} for number in range(count)]
