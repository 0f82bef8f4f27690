"""A layer's training step as CUDA graphs: captured once, and replayed in every step with the same bits as without.

A graph is a list of kernels with the addresses that they read and write. So what changes from step to step lies in
tensors that stay where they are: inputs, labels and label embeddings in slots that a step copies into, learning rates
and flags on the device, random numbers from generators that are registered with the graph and seeded before each
replay. Python runs in the capture alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from pipeline.layers.optimizer import capturable, is_capturable
from pipeline.methods import Activations, BatchPosition, Rule, StepContext

_REHEARSALS = 2  # steps
_CHANGING = frozenset(("epoch", "step", "position", "phase_step"))

F = TypeVar("F")
"""What a forward pass leaves for the update."""


class GraphRefusedError(Exception):
    """A step cannot be captured, or its replays would not be the step. The message is a clause: "its loss reads …"."""

    @classmethod
    def after(cls, error: RuntimeError) -> GraphRefusedError:
        """Says what CUDA or PyTorch said in a capture, in its first sentence."""
        said = str(error).splitlines()[0].split(". ")[0].removesuffix(".")
        return cls(f"it cannot be captured ({said})")


def check_step(rule: Rule, optimizer: torch.optim.Optimizer) -> None:
    """Raises GraphRefusedError where a layer's step cannot be captured, as far as that shows before it is tried."""
    if rule.eager is not None:
        raise GraphRefusedError(rule.eager)
    kind = type(rule)
    if kind.collect is not Rule.collect or kind.end_epoch is not Rule.end_epoch:
        raise GraphRefusedError("its method learns beside a gradient, from what it collects over an epoch")
    if not is_capturable(optimizer):
        name = type(optimizer).__name__
        raise GraphRefusedError(f"its optimizer, {name}, is no fused AdamW, Adam or SGD of PyTorch")


class CapturedPosition(BatchPosition):
    """A batch's position as a captured step sees it: without what is another one in the next step."""

    def __getattribute__(self, name: str) -> Any:
        if name in _CHANGING:
            raise GraphRefusedError(f"its method reads `where.{name}`, and a graph would keep what it was once")
        return super().__getattribute__(name)


class Capturer:
    """Captures the steps of layers that one thread trains: on a stream of its own, into one memory pool.

    Replays of layers that share a pool must not overlap, as they share what they compute with. A thread's do not.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """On the stream of captures, after what the current one has to do, and before what it does next."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    @contextmanager
    def graph(self, generators: Sequence[torch.Generator]) -> Iterator[torch.cuda.CUDAGraph]:
        """Captures what is done within. Waits for the device, so nothing may be posted on it that waits for others.

        Args:
            generators: of the random numbers that are drawn within.
        """
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        # Of this thread: others, such as NCCL's watchdog, may go on asking CUDA what they like.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            yield graph


@dataclass(frozen=True)
class Sample:
    """A batch as a step takes it, whose shapes are those of the steps to come.

    Attributes:
        shared: state that layers share; None where they share none.
    """

    activations: Activations
    labels: Tensor
    shared: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Sample:
        """The same of other tensors."""
        activations = {name: function(tensor) for name, tensor in self.activations.items()}
        return Sample(activations, function(self.labels), None if self.shared is None else function(self.shared))


@dataclass(frozen=True)
class StepWork(Generic[F]):
    """A training step in two parts, between which activations are sent. The host reads nothing of either.

    Attributes:
        begin: sets what a step has of its own at the host, such as its random numbers' seed, given the step's number.
        forward: runs the layer; what it gives is for ``update``.
        passed: what is passed on of that.
        update: updates the layer from that; returns the loss () and what goes to the shared state, if anything does.
        generators: of random numbers. The first is the layer's, which its rule draws from.
        optimizers: that ``update`` has take a step; all ``is_capturable``.
        parameters: whose gradients are looked at after a step.
        tensors: all that a step changes, by name; new ones begin with zeros.
        phase: the layers that learn at the same time, as ``BatchPosition`` has it.
    """

    begin: Callable[[int], None]
    forward: Callable[[Activations, StepContext], F]
    passed: Callable[[F], Activations]
    update: Callable[[F, StepContext], tuple[Tensor, Tensor | None]]
    generators: Sequence[torch.Generator]
    optimizers: Sequence[torch.optim.Optimizer]
    parameters: Sequence[nn.Parameter]
    tensors: Callable[[], Mapping[str, Tensor]]
    phase: range | None

    def context(self, labels: Tensor) -> StepContext:
        where = CapturedPosition(training=True, phase=self.phase)
        return StepContext(labels=labels, where=where, generator=self.generators[0])


class StepGraph(Generic[F]):
    """A captured step: one graph, or two where something is sent or read between forward pass and update.

    Nothing of the layer may be replaced by another tensor afterwards: its weights and its optimizer's state stay where
    they are.

    Args:
        sample: its tensors become the slots of the inputs; the shared state's slot gets a gradient if it has one here.
        apart: whether there are two.

    Attributes:
        passed: what is passed on. Every step writes it anew.

    Raises:
        GraphRefusedError, RuntimeError: the step does what cannot be captured.
    """

    def __init__(self, capturer: Capturer, work: StepWork[F], sample: Sample, *, apart: bool) -> None:
        self._inputs = sample
        self._parameters = work.parameters
        context = work.context(sample.labels)
        with_shared = replace(context, shared=sample.shared)
        with capturable(*work.optimizers), capturer.graph(work.generators) as graph:
            forwarded = work.forward(sample.activations, context)
            if not apart:
                self._loss, self._contribution = work.update(forwarded, with_shared)
        self._graphs = [graph]
        if apart:
            with capturable(*work.optimizers), capturer.graph(work.generators) as graph:
                self._loss, self._contribution = work.update(forwarded, with_shared)
            self._graphs.append(graph)
        self.passed = work.passed(forwarded)
        self._gradients = [parameter.grad for parameter in work.parameters]

    def fits(self, activations: Activations, labels: Tensor) -> bool:
        """Whether a batch has the shapes that were captured. One that fills no batch has others."""
        slots = self._inputs.activations
        return (
            labels.shape == self._inputs.labels.shape
            and activations.keys() == slots.keys()
            and all(
                (tensor.shape, tensor.dtype) == (slots[name].shape, slots[name].dtype)
                for name, tensor in activations.items()
            )
        )

    @torch.no_grad()
    def forward(self, activations: Activations, labels: Tensor) -> Activations:
        """What is passed on, which the next step writes over."""
        for name, slot in self._inputs.activations.items():
            slot.copy_(activations[name])
        self._inputs.labels.copy_(labels)
        self._graphs[0].replay()
        return self.passed

    @torch.no_grad()
    def update(self, shared: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The loss (), and what goes to the shared state.

        Args:
            shared: the version that the layer reads; where there is one the step is in two graphs.
        """
        if shared is not None:
            assert self._inputs.shared is not None, "captured with one"
            self._inputs.shared.copy_(shared, non_blocking=True)
        for graph in self._graphs[1:]:
            graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient  # a step without a graph leaves others
        return self._loss.clone(), None if self._contribution is None else self._contribution.clone()


def capture(capturer: Capturer, work: StepWork[F], sample: Sample, *, apart: bool, proved: bool) -> StepGraph[F]:
    """Captures a layer's step, and leaves the layer as it was.

    First some steps are made as ever: so everything is there that is made in a first step, such as the optimizer's
    state, which a graph would make anew in every replay. Then replays make the same steps again.

    Args:
        sample: a batch, which may be of random numbers.
        apart: as in ``StepGraph``.
        proved: whether the replays' bits are compared with those of the steps before.

    Raises:
        GraphRefusedError: the step does what cannot be captured, or its replays have other bits.
        RuntimeError: CUDA's, or PyTorch's, that it cannot be captured.
    """
    batches = [sample.map(partial(_turned, rows=number)) for number in range(_REHEARSALS)]
    before = {name: tensor.detach().clone() for name, tensor in work.tensors().items()}
    try:
        with capturer.aside():
            expected = [_rehearsed(work, batch, number) for number, batch in enumerate(batches)]
            after = {name: tensor.detach().clone() for name, tensor in work.tensors().items()}
            _restore(work, before)
        graph = StepGraph(capturer, work, sample.map(partial(_turned, rows=0)), apart=apart)
        if proved:
            replayed = [_replayed(work, graph, batch, number) for number, batch in enumerate(batches)]
            if not (_same(expected, replayed) and _same([after], [work.tensors()])):
                raise GraphRefusedError(
                    "its replays do not give the step's bits, so something in it changes from step to step in Python"
                )
    finally:
        _restore(work, before)
    return graph


def _rehearsed(work: StepWork[F], batch: Sample, number: int) -> dict[str, Tensor]:
    """What a step without a graph gives."""
    work.begin(number)
    context = work.context(batch.labels)
    forwarded = work.forward(batch.activations, context)
    given = work.update(forwarded, replace(context, shared=batch.shared))
    return _given(work.passed(forwarded), *given)


def _replayed(work: StepWork[F], graph: StepGraph[F], batch: Sample, number: int) -> dict[str, Tensor]:
    """What a replay gives."""
    work.begin(number)
    return _given(graph.forward(batch.activations, batch.labels), *graph.update(batch.shared))


def _given(passed: Activations, loss: Tensor, contribution: Tensor | None) -> dict[str, Tensor]:
    beside = {} if contribution is None else {"contribution": contribution}
    return {
        name: tensor.detach().clone()
        for name, tensor in {
            **{f"passed {name}": tensor for name, tensor in passed.items()},
            "loss": loss,
            **beside,
        }.items()
    }


def _turned(tensor: Tensor, rows: int) -> Tensor:
    """A copy, its rows moved on by so many."""
    return tensor.detach().roll(rows, 0).requires_grad_(tensor.requires_grad)


@torch.no_grad()
def _restore(work: StepWork[F], before: Mapping[str, Tensor]) -> None:
    """The tensors as they were, and no gradients."""
    for name, tensor in work.tensors().items():
        if name in before:
            tensor.copy_(before[name])
        else:
            tensor.zero_()
    for parameter in work.parameters:
        parameter.grad = None


def _same(first: Sequence[Mapping[str, Tensor]], second: Sequence[Mapping[str, Tensor]]) -> bool:
    """Whether tensors are equal bit by bit, NaN included."""
    return all(
        one.keys() == other.keys() and all(torch.equal(_bits(one[name]), _bits(other[name])) for name in one)
        for one, other in zip(first, second, strict=True)
    )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)
