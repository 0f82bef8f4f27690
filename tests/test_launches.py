"""A training step asks a device for few operations: each takes a GPU some microseconds, however small it is.

The ceilings are counts of the day they were written down. One that rises is a step that became slower on a GPU: find
the operations that are new, or say in the commit why they are worth it. One that can be lowered, lower.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from launch.doctor.workloads import WORKLOADS, Workload, spec_of
from pipeline.data import pixel_tables
from pipeline.data.augment import Augment, AugmentConfig
from pipeline.kind import Kind
from pipeline.layers.layer import LocalLayer
from pipeline.layers.shared_state import VersionedState
from pipeline.methods import CflSettings
from pipeline.nets import ConvSettings
from tests.support import CPU

_NO_KERNEL = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("lift_fresh", "_unsafe_view", "_record_function_enter_new", "_record_function_exit"),
}


class Launches(TorchDispatchMode):
    """Counts the operations that compute or copy: all but those that only look at memory another way or ask for it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _NO_KERNEL:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def count(self) -> int:
        return self.names.total()


# ---------------------------------------------------------------------------------------------------------------------
# Augmentation. Changed operation by operation and view by view, two views with RandAugment took 740.

CROP_AND_FLIP, ONE_ROUND, THREE_ROUNDS = 8, 48, 120
SHAPE = (3, 32, 32)


def images_of(count: int) -> Tensor:
    return torch.randint(256, (count, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def augmented(rounds: int, count: int, num_views: int) -> int:
    config = AugmentConfig(crop_padding=4, flip=True, randaugment_ops=rounds, mean=(0.5,) * 3, std=(0.25,) * 3)
    augment = Augment(config, seed=0, device=CPU)
    augment._randaugment._darker = pixel_tables.darker_by_sorting  # as on a GPU
    images = images_of(count)
    augment.views(images, epoch=0, position=0, num_views=num_views)  # makes what is made once
    with Launches() as launches:
        augment.views(images, epoch=0, position=count, num_views=num_views)
    return launches.count


@pytest.mark.parametrize(
    ("rounds", "ceiling"), [(0, CROP_AND_FLIP), (1, ONE_ROUND), (3, THREE_ROUNDS)], ids=["crop-flip", "one", "three"]
)
def test_augmentation_launches_few_kernels(rounds: int, ceiling: int) -> None:
    assert augmented(rounds, count=256, num_views=2) <= ceiling


def test_larger_batches_and_more_views_launch_no_more_kernels() -> None:
    few = augmented(3, count=200, num_views=1)
    assert augmented(3, count=1000, num_views=1) == few
    assert augmented(3, count=200, num_views=4) == few


@pytest.mark.parametrize("num_pixels", [1, 64, 1023])
def test_a_gpus_way_to_count_darker_pixels_gives_a_cpus_numbers(num_pixels: int) -> None:
    pixels = images_of(4).flatten(2)[:, :, :num_pixels].contiguous()
    pixels[0] = 255
    pixels[1] //= 50
    levels = torch.arange(256, dtype=torch.uint8)
    counted, by_sorting = (
        way(pixels, levels) for way in (pixel_tables.darker_by_counting, pixel_tables.darker_by_sorting)
    )
    assert torch.equal(counted, by_sorting)
    assert torch.equal(counted, (pixels[..., None, :] < levels[:, None]).sum(dim=-1))


# ---------------------------------------------------------------------------------------------------------------------
# A layer's training step: forward, loss, backward and update, by method and net as in the papers' runs

_CONV = Workload(net=ConvSettings(channels=(64, 256, 512)), method=CflSettings())
STEPS: dict[str, tuple[Workload, tuple[int, ...]]] = {  # net: workload, ceiling of each layer
    "ViT, CFF": (WORKLOADS["vit-128-two-views"], (137, 124, 124, 124, 124)),
    "conv, CFL": (_CONV, (115, 115, 135)),
    "VGG, DCL": (WORKLOADS["vgg8b"], (40, 42, 40, 40, 40, 64, 38)),
    "ResNet, DCL": (WORKLOADS["resnet32"], (51, *(42,) * 12, 82, 42)),
}
_BATCH = 4


def launched(workload: Workload) -> list[int]:
    """By each layer, in its second step: the first makes what is made once."""
    spec = spec_of(
        workload, device="cpu", learning="local", precision="fp32", compile_="off", graphs="off", batch=_BATCH
    )
    shared = VersionedState(spec) if spec.shared_versions is not None else None
    layers = [LocalLayer(spec, index, CPU, shared) for index in range(spec.num_layers)]
    images = torch.randn(_BATCH * layers[0].rule.num_views, *workload.shape, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(_BATCH) % 2
    for step in range(2):
        where = spec.batch_position(Kind.TRAIN, 0, step)
        activations, counts = layers[0].make_inputs(images, labels, where), []
        for layer in layers:
            with Launches() as launches:
                activations, _ = layer.train(activations, labels, where)
            counts.append(launches.count)
    return counts


@pytest.mark.parametrize("net", STEPS)
def test_a_layers_training_step_launches_no_more_kernels_than_it_did(net: str) -> None:
    workload, ceilings = STEPS[net]
    counts = launched(workload)
    assert all(count <= ceiling for count, ceiling in zip(counts, ceilings, strict=True)), counts
