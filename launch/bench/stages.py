"""The layers of the net in each stage, whichever way it learns."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config.partition import sized
from pipeline.config.run_spec import RunSpec
from pipeline.nets.chain import ModularNet


def stages_of_net(spec: RunSpec) -> tuple[range, ...]:
    """A run's stages in layers of its net, of which a local module may have several."""
    net = spec.net
    sizes = net.sizes if isinstance(net, ModularNet) else (1,) * net.num_layers
    return sized([sum(sizes[layer] for layer in layers) for layers in spec.stages])


def stage_name(number: int, layers: Sequence[int]) -> str:
    """What people call stage ``number`` (0-based): "stage 1 (layers 1-3)"."""
    numbers = f"layer {layers[0] + 1}" if len(layers) == 1 else f"layers {layers[0] + 1}-{layers[-1] + 1}"
    return f"stage {number + 1} ({numbers})"
