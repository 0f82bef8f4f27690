"""What only a GPU shows. Skipped, with the reason, where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from pipeline.checkpoints.folder import CheckpointFolder
from pipeline.checkpoints.saver import Saver
from pipeline.config import build
from pipeline.config.build import build_run
from pipeline.config.devices import Devices
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import AugmentSettings, CheckpointSettings, Settings
from pipeline.layers.state import Snapshot
from pipeline.methods import (
    BaselineSettings,
    CffSettings,
    CflSettings,
    CollabSettings,
    DclSettings,
    FfSettings,
    IffclSettings,
    InfoproSettings,
    MethodConfig,
)
from pipeline.methods.embeddings import EmbeddingSettings
from pipeline.nets import ConvSettings, MlpSettings, NetConfig, VitSettings
from pipeline.runtime.checkpointing import Checkpointing
from pipeline.runtime.history import RunResult
from pipeline.runtime.serial import train_serial
from pipeline.runtime.threads import train_threads
from pipeline.telemetry.clock import Clock
from pipeline.telemetry.steps import BusyMeter
from pipeline.transport import Transport
from tests.support import Watching
from tests.support_data import run_of_256_tokens
from tests.test_equality import assert_same
from tests.test_resume import resumes

pytestmark = pytest.mark.gpu

Executor = Literal["ray", "threads", "serial"]

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs a GPU for each of two stages")


def on_gpus(
    settings: Settings,
    executor: Executor,
    transport: Transport,
    stages: int,
    notify: Callable[[str], None] = lambda sentence: None,
) -> RunResult:
    pipe = replace(settings.pipeline, executor=executor, device="cuda", transport=transport, stages=stages)
    settings = replace(settings, pipeline=pipe)
    dataset = build.open_data(settings)
    spec: RunSpec = build_run(settings, Devices("cuda", torch.cuda.device_count()), dataset=dataset)
    if executor == "serial":
        return train_serial(spec, dataset)
    if executor == "threads":
        return train_threads(spec, dataset)
    from workers.group import train_ray

    return train_ray(spec, Watching(notify=notify))


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stages_on_a_gpu_give_the_serial_bits(small_settings: Settings, precision: Literal["fp32", "bf16"]) -> None:
    settings = replace(small_settings, pipeline=replace(small_settings.pipeline, precision=precision))
    assert_same(on_gpus(settings, "threads", "gloo", 3), on_gpus(settings, "serial", "gloo", 1))


@needs_gpu
@pytest.mark.parametrize("feeders", [0, 2])
def test_images_that_stay_on_a_gpu_give_the_bits_of_those_from_the_host(small_settings: Settings, feeders: int) -> None:
    augment = AugmentSettings(crop_padding=2, flip="on", randaugment_ops=2)
    host = replace(small_settings, augment=augment, pipeline=replace(small_settings.pipeline, feeders=feeders))
    device = replace(host, pipeline=replace(host.pipeline, data_on="device", executor="threads"))
    host = replace(host, pipeline=replace(host.pipeline, data_on="host"))
    kept, sent = on_gpus(device, "threads", "gloo", 2), on_gpus(host, "threads", "gloo", 2)
    assert kept.keeps_images and not sent.keeps_images
    assert_same(kept, sent)


@needs_gpu
@pytest.mark.parametrize(("side", "launches"), [(8, 200), (4096, 5)])
def test_what_launches_take_is_told_from_what_kernels_take(side: int, launches: int) -> None:
    """Of products that are nothing to a GPU, and of such that keep it busy for long."""
    device = torch.device("cuda", 0)
    factor, clock = torch.ones(side, side, device=device), Clock()
    meter = BusyMeter(clock, device)
    for _ in range(500):
        with meter.step(alike=True):
            for _ in range(launches):
                torch.mm(factor, factor)
    meter.finish()
    told = clock.read().launching
    assert told.steps
    print(f"{launches} products of {side}²: issued in {told.issue_ms:.3f} ms, computed in {told.kernel_ms:.3f} ms")
    assert (told.issue > told.kernels) == (side == 8)


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attention_over_256_tokens_gives_the_serial_bits(
    small_settings: Settings, tmp_path: Path, precision: Literal["fp32", "bf16"]
) -> None:
    """There PyTorch takes kernels whose backward pass sums in any order unless it is told otherwise."""
    settings = run_of_256_tokens(tmp_path / "images", small_settings)
    settings = replace(settings, pipeline=replace(settings.pipeline, precision=precision))
    once, again = (on_gpus(settings, "serial", "gloo", 1) for _ in range(2))
    assert_same(once, again)
    assert_same(on_gpus(settings, "threads", "gloo", 3), once)


@needs_gpu
@pytest.mark.parametrize("graphs", ["on", "off"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_layers_on_a_gpu_learn_as_plain_ones_do(
    small_settings: Settings, precision: Literal["fp32", "bf16"], graphs: Literal["on", "off"]
) -> None:
    """Other kernels round otherwise; a replay that wrote over what the next layer reads would be off by far more."""
    settings = replace(small_settings, train=replace(small_settings.train, epochs=1))
    settings = replace(settings, pipeline=replace(settings.pipeline, precision=precision, graphs=graphs))
    plain = on_gpus(settings, "serial", "gloo", 1).history.step_losses()
    settings = replace(settings, pipeline=replace(settings.pipeline, compile="on"))
    compiled = on_gpus(settings, "serial", "gloo", 1).history.step_losses()
    tolerance = 1e-3 if precision == "fp32" else 5e-2
    for layer, losses in plain.items():
        torch.testing.assert_close(
            torch.from_numpy(compiled[layer]), torch.from_numpy(losses), rtol=tolerance, atol=tolerance
        )


GRAPHED: dict[str, tuple[MethodConfig, NetConfig]] = {
    "CFF": (CffSettings(), VitSettings(dim=16, heads=2, depth=3, patch=2)),
    "CFF, conv": (CffSettings(), ConvSettings(channels=(8, 8, 8))),
    "CFF, dropout": (CffSettings(), MlpSettings(width=32, depth=3, dropout=0.2)),
    "CFL": (CflSettings(), ConvSettings(channels=(8, 8, 8))),
    "DCL": (DclSettings(), MlpSettings(width=32, depth=3)),
    "FF": (FfSettings(), MlpSettings(width=32, depth=3)),
    "FF Collab": (CollabSettings(), MlpSettings(width=32, depth=3)),
    "IFFCL": (IffclSettings(), MlpSettings(width=32, depth=3)),
    "InfoPro, SGD": (InfoproSettings(reconstruction_first=1), ConvSettings(channels=(8, 8, 8))),
    "bp": (BaselineSettings(), ConvSettings(channels=(8, 8))),
}


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", GRAPHED)
def test_steps_as_cuda_graphs_give_the_bits_of_steps_without(
    small_settings: Settings, name: str, precision: Literal["fp32", "bf16"]
) -> None:
    """Also where two stages take turns, and the last batch of an epoch is smaller. Their times are printed alone."""
    method, net = GRAPHED[name]
    train = replace(small_settings.train, epochs=2, milestones=(1,), last_batch="keep")
    settings = replace(small_settings, method=method, net=net, train=train)
    if name == "bp":
        settings = replace(settings, baseline="bp")
    if name == "InfoPro, SGD":
        settings = replace(settings, train=replace(train, optimizer="sgd"))
    settings = build.expand_baseline(settings)
    results, seconds = {}, {}
    for graphs in ("off", "on"):
        pipe = replace(settings.pipeline, precision=precision, graphs=graphs)
        begun = time.perf_counter()
        results[graphs] = on_gpus(replace(settings, pipeline=pipe), "serial", "gloo", 1)
        seconds[graphs] = time.perf_counter() - begun
    print(f"{name}, {precision}: {seconds['off']:.1f} s without graphs, {seconds['on']:.1f} s with them")
    assert_same(results["on"], results["off"])
    if name != "bp":
        pipe = replace(settings.pipeline, precision=precision, graphs="on")
        assert_same(on_gpus(replace(settings, pipeline=pipe), "threads", "gloo", 2), results["off"])


@needs_two
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_as_cuda_graphs_go_with_nccl(
    small_settings: Settings, cluster: None, precision: Literal["fp32", "bf16"]
) -> None:
    settings = replace(small_settings, method=DclSettings())
    with_graphs, without = (
        replace(settings, pipeline=replace(settings.pipeline, precision=precision, graphs=graphs))
        for graphs in ("on", "off")
    )
    assert_same(on_gpus(with_graphs, "ray", "nccl", 2), on_gpus(without, "serial", "gloo", 1))


@needs_gpu
@pytest.mark.parametrize("executor", ["threads", "ray"])
@pytest.mark.parametrize("method", [CflSettings(), DclSettings()], ids=["cfl", "dcl"])
def test_label_embeddings_of_layers_on_a_gpu_give_the_serial_bits(
    small_settings: Settings, cluster: None, method: MethodConfig, executor: Executor
) -> None:
    """The dictionary learns on the CPU; its versions go to the GPU, gradients come from there."""
    settings = replace(small_settings, method=method)
    stages = 3 if executor == "threads" else 1
    assert_same(on_gpus(settings, executor, "gloo", stages), on_gpus(settings, "serial", "gloo", 1))


@needs_gpu
def test_activations_staged_through_host_memory_arrive_whole(small_settings: Settings, cluster: None) -> None:
    assert_same(on_gpus(small_settings, "ray", "gloo", 1), on_gpus(small_settings, "serial", "gloo", 1))


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() > 3, reason="four stages do not outnumber these GPUs")
@pytest.mark.parametrize("transport", ["auto", "gloo"])
def test_stages_that_share_a_gpu_give_the_serial_bits_and_say_so(
    small_settings: Settings, cluster: None, transport: Transport
) -> None:
    said: list[str] = []
    assert_same(
        on_gpus(small_settings, "ray", transport, 4, notify=said.append), on_gpus(small_settings, "serial", "gloo", 1)
    )
    assert [sentence for sentence in said if "4 stages share" in sentence]


@needs_gpu
def test_label_embeddings_of_stages_that_share_a_gpu_give_the_serial_bits(
    small_settings: Settings, cluster: None
) -> None:
    settings = replace(small_settings, method=DclSettings())
    assert_same(on_gpus(settings, "ray", "auto", 3), on_gpus(settings, "serial", "gloo", 1))


@needs_two
@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("transport", ["gloo", "nccl"])
def test_stages_on_gpus_of_their_own_give_the_serial_bits(
    small_settings: Settings, cluster: None, transport: Transport, stages: int
) -> None:
    """From three stages on one of them has an edge on either side."""
    if stages > torch.cuda.device_count():
        pytest.skip(f"needs {stages} GPUs")
    assert_same(on_gpus(small_settings, "ray", transport, stages), on_gpus(small_settings, "serial", "gloo", 1))


@needs_two
@pytest.mark.parametrize("compile_", ["on", "off"])
@pytest.mark.parametrize("stages", [2, 3])
def test_label_embeddings_read_exactly_by_compiled_or_captured_stages_do_not_stop_them(
    small_settings: Settings, cluster: None, stages: int, compile_: Literal["on", "off"]
) -> None:
    """The capture of a graph waits for the whole device, with what is received on it."""
    if stages > torch.cuda.device_count():
        pytest.skip(f"needs {stages} GPUs")
    method = DclSettings(embedding=EmbeddingSettings(embedding_mode="shared-sum", embedding_sync="exact"))
    pipe = replace(small_settings.pipeline, compile=compile_, graphs="on")
    result = on_gpus(replace(small_settings, method=method, pipeline=pipe), "ray", "nccl", stages)
    assert result.best_epoch is not None


@needs_gpu
def test_a_checkpoint_is_copied_from_a_gpu_before_the_next_update(tmp_path: Path) -> None:
    """The copy goes with the device's work, which the host does not wait for."""
    saver, weights = Saver(tmp_path), torch.zeros(1 << 22, device="cuda")
    try:
        for number in range(4):
            saver.save(str(number), {"w": Snapshot({"w": weights, "step": torch.tensor(float(number))})})
            for _ in range(50):
                weights += 0.02
            weights.round_()
        assert saver.wait(60)
    finally:
        saver.close()
    assert not any(file.error for file in saver.take())
    for number in range(4):
        saved = CheckpointFolder(tmp_path).read(str(number), "w").tensors
        assert (saved["w"] == number).all() and float(saved["step"]) == number


@needs_gpu
@pytest.mark.parametrize("stages", [1, 3])
def test_a_run_on_a_gpu_goes_on_from_its_checkpoints(small_settings: Settings, stages: int, tmp_path: Path) -> None:
    """Fused optimizers keep their steps on the device, and tallies their losses."""
    saving = replace(small_settings, checkpoint=CheckpointSettings(checkpoint_every="30", keep_checkpoints=100))
    want = on_gpus(saving, "serial", "gloo", 1)
    pipe = replace(saving.pipeline, executor="threads", device="cuda", transport="gloo", stages=stages)
    settings = replace(saving, pipeline=pipe)
    dataset = build.open_data(settings)
    spec = build_run(settings, Devices("cuda", torch.cuda.device_count()), dataset=dataset)
    assert_same(train_threads(spec, dataset, checkpointing=Checkpointing(folder=tmp_path)), want)
    for resume in resumes(tmp_path):
        assert_same(train_threads(spec, dataset, checkpointing=Checkpointing(resume=resume)), want)
