"""The training steps of a stage's layers as CUDA graphs: captured before any message can be on its way."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.config.run_spec import RunSpec
from pipeline.errors import RunError
from pipeline.layers.forward import Arithmetic
from pipeline.layers.layer import LocalLayer
from pipeline.layers.step_graph import Capturer, GraphRefusedError
from pipeline.runtime.edges import dry_run
from pipeline.runtime.passes import START, Cut


def capture_steps(spec: RunSpec, layers: Sequence[LocalLayer], cut: Cut = START) -> tuple[str, ...]:
    """Captures the step of every layer that is still to learn, where the run has graphs, for full batches.

    A capture waits for all that the device has to do. So it comes before the channels are made: a receive that is
    posted waits for the neighbour, and the neighbour may wait for this stage.

    Args:
        layers: consecutive ones, of one stage, on one device.
        cut: where the run goes on.

    Returns:
        Sentences on layers whose steps go on without a graph, and why.

    Raises:
        RunError: there are such, and the run asks for graphs in any case.
        NondeterministicError: an operation has no deterministic kernel, and the run asks for one.
    """
    learning = {index for phase in spec.phases[len(cut.restored) :] for index in phase.layers}
    waiting = {layer.index: layer for layer in layers if layer.index in learning}
    if not spec.graphs or not waiting:
        return ()
    pipe, device = spec.settings.pipeline, layers[0].device
    ends = {stage[-1] for stage in spec.stages[:-1]}
    capturer = Capturer(device)
    labels = torch.arange(spec.settings.train.batch_size, device=device) % len(spec.classes)
    refused: dict[str, list[int]] = {}
    for index, (activations, _) in enumerate(dry_run(spec, labels, Arithmetic.of(pipe), training=True)):
        layer = waiting.pop(index, None)
        if layer is not None:
            sends, proved = index in ends, pipe.deterministic == "on"
            try:
                layer.capture(capturer, activations, labels, sends=sends, proved=proved)
            except GraphRefusedError as reason:
                refused.setdefault(str(reason), []).append(index)
        if not waiting:
            break
    notes = tuple(f"{_named(indices)} without a CUDA graph: {reason}." for reason, indices in refused.items())
    if notes and pipe.graphs == "on":
        raise RunError(f"`graphs` on: {' '.join(notes)} Use `graphs` auto or off.")
    return notes


def _named(indices: Sequence[int]) -> str:
    numbers = ", ".join(str(index + 1) for index in indices)
    return f"Layer {numbers} trains" if len(indices) == 1 else f"Layers {numbers} train"
