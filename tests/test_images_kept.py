"""Images that stay on the first stage's device: each is sent once, and every batch has the bits that the host has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from launch.cli import main
from pipeline.config.checks import check
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import PipelineSettings, Settings
from pipeline.data.kept import KeptImages, NewImages
from pipeline.data.loader import Dataset
from pipeline.errors import RunError, UserError
from pipeline.kind import Kind
from pipeline.runtime import keeping
from pipeline.runtime.checkpointing import Checkpointing
from pipeline.runtime.feeder import IMAGE_IDS, IMAGES, SPLITS, messages
from pipeline.runtime.history import RunResult
from pipeline.runtime.keeping import kept_images
from pipeline.runtime.passes import Pass, layer_passes, readout_passes
from pipeline.transport.message import IDS, LABELS, Message
from tests.conftest import make_run
from tests.support import CPU, changed, tiny_spec
from tests.test_equality import VARIANTS, assert_same, serial, through_ray, through_threads
from tests.test_resume import assert_all_go_on
from tests.test_resume import through_threads as resumed_in_threads

_RUN = [*layer_passes(range(2)), Pass(Kind.RESTORE, 0), *readout_passes(2, 1)]


@pytest.fixture(scope="module")
def settings(small_settings: Settings) -> Settings:
    """Two epochs of 16 steps."""
    return replace(small_settings, data=replace(small_settings.data, train_fraction=0.4))


def on_device(settings: Settings, feeders: int) -> Settings:
    pipe = replace(settings.pipeline, executor="threads", data_on="device", feeders=feeders)
    return replace(settings, pipeline=pipe)


def sent(dataset: Dataset, passes: Sequence[Pass], feeders: int) -> Iterator[Message]:
    """The batches of these passes in their order, from so many feeders."""
    sources = [messages(NewImages(dataset), passes, batch_size=32, part=(number, feeders)) for number in range(feeders)]
    turn = passes[0].first % feeders
    while (message := next(sources[turn], None)) is not None:
        if not message.kind.is_control:
            yield message
            turn = 0 if message.last else (turn + 1) % feeders


@pytest.mark.parametrize("feeders", [1, 3])
@pytest.mark.parametrize("validation", [0.1, "test"])
def test_every_batch_has_its_images_and_each_travels_once(
    settings: Settings, feeders: int, validation: float | Literal["test"]
) -> None:
    _, dataset = make_run(replace(settings, data=replace(settings.data, validation=validation)))
    passes = _RUN if feeders == 1 else [one._replace(first=5) if one == _RUN[0] else one for one in _RUN]
    kept, seen = KeptImages(dataset.counts_on_disk, dataset.index.shape, CPU), set[tuple[str, int]]()
    whole = (one for one in messages(dataset, passes, batch_size=32) if not one.kind.is_control)
    for message, want in zip(sent(dataset, passes, feeders), whole, strict=True):
        assert (message.kind, message.epoch, message.step) == (want.kind, want.epoch, want.step)
        split = dataset.on_disk(SPLITS[message.kind])
        if IMAGES in message.tensors:
            new = {(split, number) for number in message.tensors[IMAGE_IDS].tolist()}
            assert not new & seen
            seen |= new
            kept.add(split, message.tensors[IMAGES], message.tensors[IMAGE_IDS])
        assert torch.equal(kept.batch(split, message.tensors[IDS]), want.tensors[IMAGES])
        assert torch.equal(message.tensors[LABELS], want.tensors[LABELS])
    last = [message for message in sent(dataset, _RUN, feeders) if message.kind is Kind.READOUT]
    assert last and not any(len(message.tensors.get(IMAGE_IDS, ())) > 16 for message in last)


def test_threads_give_the_serial_bits(settings: Settings) -> None:
    got = through_threads(on_device(settings, 3), 3)
    assert got.keeps_images
    assert_same(got, serial(settings))


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        "as the authors' program of CFF",  # views in validation, judged readouts, a smaller last batch
        pytest.param("RandAugment, flip and crop", marks=pytest.mark.exhaustive),
        pytest.param("no feeder", marks=pytest.mark.exhaustive),
    ],
)
def test_other_passes_and_augmentation_give_the_serial_bits(settings: Settings, variant: str) -> None:
    varied = VARIANTS[variant](settings)
    assert_same(through_threads(on_device(varied, varied.pipeline.feeders), 2), serial(varied))


def test_a_run_goes_on_from_every_checkpoint_with_the_same_bits(settings: Settings, tmp_path: Path) -> None:
    """Whoever keeps images then begins without any, and is sent them once more."""

    def kept(settings: Settings, checkpointing: Checkpointing) -> RunResult:
        return resumed_in_threads(2)(on_device(settings, 2), checkpointing)

    cuts = assert_all_go_on(settings, kept, [kept], tmp_path, every=17)
    assert len(cuts) >= 3


@pytest.mark.parametrize("feeders", [2, pytest.param(0, marks=pytest.mark.exhaustive)])
def test_ray_gives_the_serial_bits(settings: Settings, cluster: None, feeders: int) -> None:
    got = through_ray(on_device(settings, feeders), 2)
    assert got.keeps_images
    assert_same(got, serial(settings))


# ---------------------------------------------------------------------------------------------------------------------
# When


def on_gpu(images: int, **pipeline: str) -> RunSpec:
    spec = replace(tiny_spec(), device="cuda", num_images=(images, 0))
    return changed(changed(spec, "pipeline", **pipeline), "data", memory_budget=1.0)


def test_images_stay_on_a_gpu_that_has_room_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "free_bytes", lambda device: 4 << 30)
    fitting, larger = 2**30 // 64, 2**30 // 64 + 1  # of 64 bytes each: a GiB, a quarter of what is free
    kept, notes = kept_images(on_gpu(fitting), torch.device("meta"))
    assert kept is not None and not notes
    assert kept_images(on_gpu(larger), CPU) == (None, ()), "more than the memory budget"
    assert kept_images(on_gpu(fitting, data_on="host"), CPU) == (None, ())
    assert kept_images(replace(on_gpu(fitting), device="cpu"), CPU) == (None, ()), "a CPU's are its own already"
    assert kept_images(on_gpu(fitting, executor="serial"), CPU) == (None, ())


def test_a_set_that_has_grown_beyond_the_memory_stays_on_the_host_which_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeping, "free_bytes", lambda device: 1 << 30)
    kept, (note,) = kept_images(on_gpu(2**29 // 64), torch.device("cuda:0"))
    assert kept is None
    assert note == (
        "Images stay on the host: decoded images take 0.50 GiB, more than a quarter of the 1.00 GiB that are free on "
        "cuda:0."
    )
    with pytest.raises(RunError, match=r"^`data_on` device: the decoded images take 0.50 GiB, .* Use `data_on` auto"):
        kept_images(on_gpu(2**29 // 64, data_on="device"), torch.device("cuda:0"))


def test_the_reference_refuses_to_keep_images() -> None:
    with pytest.raises(UserError, match="`data_on` device: `executor` serial"):
        check(Settings(pipeline=PipelineSettings(executor="serial", data_on="device")))


def test_a_person_sees_where_the_images_are_and_may_go_on_with_them_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--dim", "16", "--heads", "2", "--depth", "2", "--epochs", "1", "--readout-epochs", "1"]
    run = tmp_path / "run"
    flags = ["--device", "cpu", "--executor", "threads", "--data-on", "device", "--verbose"]
    assert main(["cff-vit", *small, *flags, "--run-dir", str(run)]) == 0
    assert ": cpu, with all images (0.1 MiB)" in capsys.readouterr().out
    assert json.loads((run / "summary.json").read_text())["data"]["images_on"] == "device"
    assert main(["resume", str(run), "--epochs", "2", "--data-on", "host", "--verbose"]) == 0
    assert "with all images" not in capsys.readouterr().out
    assert json.loads((run / "summary.json").read_text())["data"]["images_on"] == "host"
