"""What stages take of a cluster, and how their activations travel there."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from pipeline.config.build import build_run
from pipeline.config.devices import Devices
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Settings
from pipeline.errors import UserError
from pipeline.transport import Transport
from tests.support import changed, tiny_spec
from workers.placement import bundles_of


@pytest.mark.parametrize(
    ("stages", "gpus", "shares"),
    [
        (2, 2, [1.0, 1.0]),
        (2, 8, [1.0, 1.0]),
        (3, 1, [0.3333, 0.3333, 0.3333]),
        (3, 2, [1.0, 0.5, 0.5]),
        (2, 0, [1.0, 1.0]),  # none yet: Ray waits for them, or its autoscaler brings them
    ],
)
def test_stages_that_outnumber_the_gpus_share_them_evenly(stages: int, gpus: int, shares: list[float]) -> None:
    bundles = bundles_of(replace(tiny_spec(stages=stages), device="cuda"), gpus)
    assert sorted(bundle["GPU"] for bundle in bundles) == sorted(shares)
    assert all(list(bundle) == ["GPU"] for bundle in bundles)


def test_stages_on_cpus_take_their_threads_and_never_share_them() -> None:
    assert bundles_of(changed(tiny_spec(stages=3), "pipeline", threads=2), gpus=1) == [{"CPU": 2.0}] * 3


def placed(settings: Settings, transport: Transport, devices: Devices, stages: int = 2) -> RunSpec:
    pipe = replace(settings.pipeline, executor="ray", device="auto", transport=transport, stages=stages)
    settings = replace(settings, pipeline=pipe)
    return build_run(settings, devices)


@pytest.mark.parametrize(
    ("kind", "count", "asked", "taken"),
    [
        ("cuda", 2, "auto", "nccl"),
        ("cuda", 1, "auto", "gloo"),
        ("cuda", 2, "gloo", "gloo"),
        ("cpu", 2, "auto", "auto"),  # neighbours find out whether they share a machine
        ("cpu", 1, "shm", "shm"),
    ],
)
def test_two_stages_get_the_transport_that_fits_their_devices(
    small_settings: Settings, kind: Literal["cpu", "cuda"], count: int, asked: Transport, taken: Transport
) -> None:
    assert placed(small_settings, asked, Devices(kind, count)).settings.pipeline.transport == taken


def test_nccl_between_stages_that_share_a_gpu_is_refused_naming_gloo(small_settings: Settings) -> None:
    with pytest.raises(UserError, match=r"`transport` nccl: 2 stages share 1 GPU, .* Use `transport` gloo, or .* 1\."):
        placed(small_settings, "nccl", Devices("cuda", 1))


def test_shared_memory_between_gpus_is_refused(small_settings: Settings) -> None:
    with pytest.raises(UserError, match="`transport` shm works between CPUs only"):
        placed(small_settings, "shm", Devices("cuda", 2))
