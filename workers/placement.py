"""What each stage takes of a cluster, and in which environment it runs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection
from typing import Any

import ray

from pipeline.config.partition import partition
from pipeline.config.run_spec import RunSpec
from pipeline.transport import CARRIERS
from workers.topology import ask_nvidia_smi

_FREED = 5.0  # seconds within which Ray knows that what was given back is free
_LOOK = 0.2  # seconds between two looks at what is

_GPU_ENVIRONMENT = {
    # Ray's masking of CUDA_VISIBLE_DEVICES slows NCCL on NVSwitch hosts; stages choose their device themselves.
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
}


def bundles_of(spec: RunSpec, gpus: int) -> list[dict[str, float]]:
    """What each stage takes of a cluster with so many GPUs. Where stages outnumber the GPUs, each is shared evenly."""
    if spec.device == "cpu":
        return [{"CPU": float(spec.settings.pipeline.threads)}] * spec.num_stages
    # A stage on a GPU takes no core of its own: it only launches kernels, and cores may be what a node lacks.
    if spec.num_stages <= gpus or not gpus:
        return [{"GPU": 1.0}] * spec.num_stages
    sharing = [len(stages) for stages in partition(spec.num_stages, gpus) for _ in stages]
    # Ray counts in steps of 1/10,000. Rounded up, the shares of a GPU would be more than it.
    return [{"GPU": math.floor(10_000 / count) / 10_000} for count in sharing]


def runtime_env(spec: RunSpec) -> dict[str, Any] | None:
    """The environment of a stage's process where it is not the usual one."""
    if spec.device == "cpu":
        return None
    return gpu_environment(spec.settings.pipeline.transport)


def gpu_environment(transport: str) -> dict[str, Any]:
    """That of a process that sends from GPU to GPU; what the launching process has set stays."""
    wanted = {**_GPU_ENVIRONMENT, **CARRIERS[transport].environment}
    return {"env_vars": {name: os.environ.get(name, value) for name, value in wanted.items()}}


def look(with_links: bool) -> tuple[str, str]:
    """In a task on a stage's place: its GPU as the node calls it, and the node's table of links where asked for."""
    return str(ray.get_gpu_ids()[0]), ask_nvidia_smi() if with_links else ""


def room(spec: RunSpec, most: int, avoid: Collection[str] = ()) -> int:
    """Stages that there is room for now, up to so many: what is free, as far as it lies on nodes that can hold one.

    Args:
        avoid: nodes by Ray's ids that none is to be on.
    """
    kind, amount = ("CPU", spec.settings.pipeline.threads) if spec.device == "cpu" else ("GPU", 1)
    deadline = time.perf_counter() + _FREED
    while (count := _room(kind, amount, avoid)) < most and time.perf_counter() < deadline:
        time.sleep(_LOOK)
    return min(count, most)


def _room(kind: str, amount: float, avoid: Collection[str]) -> int:
    free = ray._private.state.available_resources_per_node()  # of living nodes
    return sum(int(there.get(kind, 0) // amount) for node, there in free.items() if node not in avoid)


def described(bundles: list[dict[str, float]]) -> str:
    kind = next(iter(bundles[0]))
    amounts = [bundle[kind] for bundle in bundles]
    if min(amounts) < max(amounts):
        return f"{len(bundles)} stages need {sum(amounts):.4g} {kind} together"
    return f"{len(bundles)} stages need {amounts[0]:g} {kind} each"


def missing(bundles: list[dict[str, float]], waited: float) -> str:
    there, free = ray.cluster_resources(), ray.available_resources()
    have = ", ".join(f"{there.get(kind, 0):g} {kind} ({free.get(kind, 0):g} free)" for kind in bundles[0])
    return (
        f"{described(bundles)}; after {waited:g} s the cluster has {have}. "
        "Give fewer `stages`, free some, add nodes, or wait longer with `resource_timeout`."
    )
