"""What stages take of a cluster, and how their activations travel there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal

import pytest

from launch.cli import main
from pipeline.config.build import build_run
from pipeline.config.devices import Devices
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Settings, from_dict
from pipeline.errors import UserError
from pipeline.transport import CARRIERS, Gloo, Transport
from pipeline.transport.base import DeviceKind, automatic, kinds
from tests.support import changed, tiny_spec
from workers.cluster import ray_cluster
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


class Pigeon(Gloo):
    """A transport from elsewhere."""

    kind: ClassVar[str] = "pigeon"
    devices = frozenset[DeviceKind](("cpu",))
    auto_place: ClassVar[int | None] = None


@pytest.fixture
def pigeon() -> Iterator[None]:
    """It is registered, for the length of a test."""
    CARRIERS.register(Pigeon)
    yield
    CARRIERS.forget("pigeon")


def test_a_transport_that_is_registered_is_taken_where_it_works(small_settings: Settings, pigeon: None) -> None:
    assert placed(small_settings, "pigeon", Devices("cpu", 2)).settings.pipeline.transport == "pigeon"
    with pytest.raises(UserError, match=r"`transport` pigeon works between CPUs only. Use `transport` auto, nccl or"):
        placed(small_settings, "pigeon", Devices("cuda", 2))
    with pytest.raises(UserError, match=r"nccl works between GPUs only. Use `transport` auto, shm, gloo or pigeon on"):
        placed(small_settings, "nccl", Devices("cpu", 2))


def test_auto_tries_those_that_say_so_in_their_order(pigeon: None) -> None:
    assert [carrier.kind for carrier in automatic("cpu")] == ["shm", "gloo"]
    assert [carrier.kind for carrier in automatic("cuda")] == ["nccl", "gloo"]
    assert kinds() == ["gloo", "pigeon", "shm", "nccl"]


def test_an_unknown_transport_names_those_that_there_are(capsys: Any) -> None:
    with pytest.raises(ValueError, match=r"no transport is called 'owl'. There are: gloo, nccl, shm"):
        CARRIERS["owl"]
    with pytest.raises(UserError, match=r"pipeline.transport should be 'auto', 'gloo', 'shm' or 'nccl', not 'owl'"):
        from_dict({"pipeline": {"transport": "owl"}}, source="here")
    with pytest.raises(SystemExit):
        main(["cff-vit", "--transport", "owl"])
    assert "gloo" in capsys.readouterr().err


def test_shared_memory_between_gpus_is_refused(small_settings: Settings) -> None:
    with pytest.raises(UserError, match="`transport` shm works between CPUs only"):
        placed(small_settings, "shm", Devices("cuda", 2))


@pytest.mark.parametrize(("devices", "told"), [(Devices("cuda", 3), 3), (Devices("cpu", 2), None)])
def test_a_private_cluster_is_told_of_the_gpus_that_torch_finds(
    small_settings: Settings, devices: Devices, told: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Symptom: Ray found no GPU, where torch found some, and the run waited for them in vain."""
    given: dict[str, Any] = {}
    monkeypatch.setattr("workers.cluster.local_devices", lambda *asked: devices)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **options: given.update(options))
    monkeypatch.setattr("ray.shutdown", lambda: None)
    pipe = replace(small_settings.pipeline, executor="ray", device="auto")
    with ray_cluster(replace(small_settings, pipeline=pipe)) as there:
        assert there == devices
    assert given["num_gpus"] == told, "None: as many as Ray finds, as before"
