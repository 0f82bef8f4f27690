"""CUDA graphs without a GPU: a fake that records each operation with the memory that it reads and writes, and replays.

A replay runs no Python of the step. It repeats the recorded operations on the tensors that were there at the capture,
as a GPU does: what a step took from Python stays as it was then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.config.run_spec import RunSpec
from pipeline.layers.layer import LocalLayer
from pipeline.runtime import serial, stage

_ATEN = torch.ops.aten
_READS = (_ATEN._local_scalar_dense, _ATEN.nonzero, _ATEN.masked_select, _ATEN.equal)


class FakeGraph:
    """As ``torch.cuda.CUDAGraph``. What one of them does is noted in ``FakeCuda.log``."""

    def __init__(self, cuda: FakeCuda, number: int) -> None:
        self._cuda, self.number = cuda, number
        self.generators: list[torch.Generator] = []
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generators.append(generator)

    def replay(self) -> None:
        self._cuda.log.append(f"replay {self.number}")
        with torch.no_grad():
            for function, args, kwargs, written in self.operations:
                again = function(*args, **kwargs)
                for target, value in zip(tree_leaves(written), tree_leaves(again), strict=True):
                    if torch.is_tensor(target) and target.data_ptr() != value.data_ptr():
                        target.copy_(value)


class _Recorder(TorchDispatchMode):
    """What CUDA does in a capture: notes operations, and refuses those that the host waits for.

    A GPU does none of them then. Here they are done, to know their results' shapes, and what they wrote is taken back.
    """

    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = graph
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def take_back(self) -> None:
        unnoticed: Any = torch.autograd._unsafe_preserve_version_counter  # type: ignore[attr-defined]
        for tensor, before in self._before.values():
            with unnoticed(tensor):  # a GPU has not written it at all
                tensor.copy_(before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in _READS:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing\n{func}")
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, torch.Generator) and value.initial_seed() not in self._seeds():
                raise RuntimeError("the generator is not registered with the graph that is being captured")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(value)
        self._keep(kwargs.get("out"))
        if func.overloadpacket is _ATEN.native_batch_norm:  # whose schema does not tell of its running statistics
            self._keep(args[3:5])
        written = func(*args, **kwargs)
        self._graph.operations.append((func, args, kwargs, written))
        return written

    def _seeds(self) -> list[int]:
        """Of the generators that are registered; each layer's is another. PyTorch hands over other objects of them."""
        return [generator.initial_seed() for generator in self._graph.generators]

    def _keep(self, values: Any) -> None:
        for tensor in tree_leaves(values):
            if torch.is_tensor(tensor) and tensor.data_ptr() not in self._before:
                self._before[tensor.data_ptr()] = tensor, tensor.detach().clone()


class FakeCuda:
    """torch.cuda as steps are captured by it, on a CPU.

    Attributes:
        log: captures and replays, in order, with the number of their graph.
        graphs: in the order of their captures.
        pools: that captures were told to share.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.graphs: list[FakeGraph] = []
        self.pools: set[object] = set()
        for name, fake in {
            "CUDAGraph": self._new_graph,
            "graph": self._capture,
            "graph_pool_handle": object,
            "Stream": _FakeStream,
            "stream": self._on,
            "current_stream": _FakeStream,
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch.nn.functional, "one_hot", _one_hot)

    def _new_graph(self) -> FakeGraph:
        graph = FakeGraph(self, len(self.graphs))
        self.graphs.append(graph)
        return graph

    @contextmanager
    def _capture(self, graph: FakeGraph, *, pool: object, stream: object, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local", "other threads may use the device"
        self.pools.add(pool)
        self.log.append(f"capture {graph.number}")
        recorder = _Recorder(graph)
        try:
            with recorder:
                yield
        finally:
            recorder.take_back()

    @contextmanager
    def _on(self, stream: object) -> Iterator[None]:
        yield


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """As on a GPU, where the host does not look whether labels are classes."""
    return (labels[..., None] == torch.arange(num_classes)).long()


class _FakeStream:
    def __init__(self, device: torch.device) -> None:
        """Work on a CPU is done when it is asked for: there is no order to keep."""

    def wait_stream(self, other: _FakeStream) -> None:
        """As above."""


class LayerOfGpu(LocalLayer):
    """A layer on a CPU that leaves to the device what one on a GPU leaves to it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._decide_on_device()


def as_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has runs on CPUs make their layers as on GPUs, and capture their steps unless they are told not to."""
    monkeypatch.setattr(serial, "LocalLayer", LayerOfGpu)
    monkeypatch.setattr(stage, "LocalLayer", LayerOfGpu)
    monkeypatch.setattr(RunSpec, "graphs", property(lambda spec: spec.settings.pipeline.graphs != "off"))


def tensors_of(layer: LocalLayer) -> dict[str, Tensor]:
    """All that the layer's next step depends on."""
    return {name: value.clone() for name, value in layer.snapshot().tensors.items()}
