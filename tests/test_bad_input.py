"""A mistake gets one clear message before anything starts, and loses nothing."""

from __future__ import annotations

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from PIL import Image

from launch.cli import main
from pipeline.config.devices import Devices, check_precision, local_devices
from pipeline.data import prepare
from pipeline.errors import ResourcesError
from pipeline.runtime.process import configure_process
from tests.support import tiny_spec

_RUN = ["cff-vit", "--executor", "threads", "--device", "cpu"]

MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "unknown preset": (["cff-vitt"], ["cff-vitt", "Did you mean 'cff-vit'"]),
    "unknown data set": ([*_RUN, "--data", "cifar11"], ["cifar11", "cifar10"]),
    "data not prepared": ([*_RUN, "--data", "cifar100"], ["launch prepare cifar100"]),
    "more stages than layers": ([*_RUN, "--stages", "9"], ["--stages 9", "4 layers", "--stages 4"]),
    "no stage": ([*_RUN, "--stages", "0"], ["--stages 0", "1 to 4"]),
    "patch that does not divide": ([*_RUN, "--patch", "3"], ["--patch 3", "8×8", "1, 2, 4, 8"]),
    "heads that do not divide": ([*_RUN, "--heads", "7"], ["--dim 64", "--heads 7", "1, 2, 4, 8"]),
    "batch of one": ([*_RUN, "--batch-size", "1"], ["--batch-size 1", "at least 2"]),
    "fewer images than a batch": ([*_RUN, "--batch-size", "5000"], ["--batch-size 5000", "1294"]),
    "no temperature": ([*_RUN, "--temperature", "0"], ["--temperature 0", "above 0"]),
    "margin out of range": ([*_RUN, "--margin-first", "3"], ["--margin-first 3", "between 0 and 2"]),
    "exponential to zero": (
        [*_RUN, "--margin-schedule", "exponential", "--margin-last", "0"],
        ["exponential", "above 0"],
    ),
    "no validation": ([*_RUN, "--validation", "0"], ["--validation 0", "between 0 and 1"]),
    "no training image": ([*_RUN, "--train-fraction", "0"], ["--train-fraction 0", "0 < share <= 1"]),
    "more training images than there are": ([*_RUN, "--train-fraction", "1.5"], ["--train-fraction 1.5"]),
    "every label wrong": ([*_RUN, "--label-noise", "1"], ["--label-noise 1", "0 <= share < 1"]),
    "less than no label noise": ([*_RUN, "--label-noise", "-0.1"], ["--label-noise -0.1", "0 <= share < 1"]),
    "no epoch": ([*_RUN, "--epochs", "0"], ["--epochs 0", "at least 1"]),
    "no learning rate": ([*_RUN, "--lr", "0"], ["--lr 0", "above 0"]),
    "milestones that fall": ([*_RUN, "--milestones", "5", "3"], ["--milestones 5 3", "each above the one before"]),
    "milestone twice": ([*_RUN, "--milestones", "3", "3"], ["--milestones 3 3", "each above the one before"]),
    "milestone before the first epoch": ([*_RUN, "--milestones", "0"], ["--milestones 0", "at least 1"]),
    "learning rate that rises": ([*_RUN, "--lr-decay", "2"], ["--lr-decay 2", "at most 1"]),
    "no learning rate of the readouts": ([*_RUN, "--readout-lr", "0"], ["--readout-lr 0", "above 0"]),
    "no readout where layers do not predict": ([*_RUN, "--readout", "none"], ["--readout none", "--readout after"]),
    "accuracy of no prediction": ([*_RUN, "--keep", "accuracy"], ["--keep accuracy", "--readout online"]),
    "no queue": ([*_RUN, "--queue-depth", "0"], ["--queue-depth 0"]),
    "no thread": ([*_RUN, "--threads", "0"], ["--threads 0"]),
    "more feeders than batches": ([*_RUN, "--feeders", "100"], ["--feeders 100", "batches"]),
    "NCCL between CPUs": ([*_RUN, "--transport", "nccl"], ["--transport nccl", "gloo"]),
    "stages of a serial run": (["cff-vit", "--executor", "serial", "--stages", "2"], ["serial", "2"]),
    "RandAugment too strong": (
        [*_RUN, "--randaugment-ops", "3", "--randaugment-magnitude", "99"],
        ["99", "30"],
    ),
    "no such configuration": ([*_RUN, "--config", "nowhere.json"], ["nowhere.json", "config.json"]),
    "eval of no run": (["eval", "nowhere"], ["nowhere", "run folder"]),
    "predict with no run": (["predict", "nowhere", "x.png"], ["nowhere"]),
    "predict without images": (["predict", "runs/it"], ["image files", "launch predict runs/it photo.jpg"]),
    "predict no class": (["predict", "nowhere", "x.png", "--top", "0"], ["--top 0", "at least 1"]),
    "export to another format": (["export", "nowhere", "x.pt"], ["x.pt", ".safetensors"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    arguments, said = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert len(captured.err.strip().splitlines()) == 1
    assert all(part in captured.err for part in said), captured.err
    assert not list(tmp_path.iterdir()), "a refused run leaves nothing"


@pytest.mark.parametrize(
    "arguments", [["--epochz", "3"], ["--views", "3"], ["--epochs", "many"], ["--readout", "never"]]
)
def test_an_unknown_flag_or_value_is_named(arguments: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*_RUN, *arguments])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert arguments[0] in captured.out + captured.err


def test_a_data_folder_that_cannot_be_is_one_message(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("LOCALPIPE_DATA", "/proc/nope")
    for arguments in (["prepare", "digits"], _RUN):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert len(said.strip().splitlines()) == 1
        assert "/proc/nope cannot be created" in said
        assert "LOCALPIPE_DATA" in said


def test_a_folder_without_shards(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "notes.txt").write_text("no images here")
    assert main([*_RUN, "--data", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path) in said
    assert "CLASS" in said


def test_a_run_folder_that_holds_something_is_kept(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "precious.txt").write_text("results")
    assert main([*_RUN, "--run-dir", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert (tmp_path / "precious.txt").read_text() == "results"


def _damaged_digits(tmp_path: Path, data_dir: Path) -> Path:
    """Digits with a second shard, cut short."""
    prepare.prepare("digits")
    folder = tmp_path / "damaged"
    shutil.copytree(data_dir / "digits", folder)
    shard = max(folder.glob("*train*.tar"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    return folder


def test_a_truncated_shard_is_refused_when_asked(tmp_path: Path, data_dir: Path, capsys: Any) -> None:
    folder = _damaged_digits(tmp_path, data_dir)
    assert main([*_RUN, "--data", str(folder), "--strict-data"]) == 2
    assert "train" in capsys.readouterr().err


def test_a_configuration_with_unknown_settings(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"settings": {"train": {"epochs": 3, "nesterov": 1}}}))
    assert main([*_RUN, "--config", str(file)]) == 2
    assert "train.nesterov" in capsys.readouterr().err
    file.write_text(json.dumps({"settings": {"net": {"kind": "vitt", "dim": 8}}}))
    assert main([*_RUN, "--config", str(file)]) == 2
    said = capsys.readouterr().err
    assert "no net is called 'vitt'" in said
    assert "mixer, mlp" in said
    file.write_text(json.dumps({"settings": {"train": {"epochs": "many"}}}))
    assert main([*_RUN, "--config", str(file)]) == 2
    assert "train.epochs" in capsys.readouterr().err


@pytest.mark.parametrize("initialized", [False, True])
def test_an_unreachable_cluster(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, initialized: bool
) -> None:
    ended: list[bool] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: initialized)  # by this process, before and for other work
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nothing answers there
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["cff-vit", "--address", address, "--run-dir", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert address in said
    assert "ray start --head" in said
    assert not ended
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("reasons", "said"),
    [
        (["The current node timed out during startup."] * 3, "timed out during startup"),
        (
            ["The current node timed out during startup.", "no room for the object store"],
            "no room for the object store",
        ),
    ],
)
def test_a_machine_on_which_ray_does_not_start_is_one_message(
    reasons: list[str], said: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Symptom: on a busy machine Ray gave up after 30 seconds, with a traceback. Now it may try again."""
    left = list(reasons)

    def init(**_: object) -> None:
        raise Exception(left.pop(0))

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", init)
    assert main(["cff-vit", "--run-dir", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert not left
    assert said in error and "--executor threads" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture
def old_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, the second of compute capability 7.5."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: ((8, 6), (7, 5))[torch.device(device).index])


@pytest.mark.parametrize("executor", ["ray", "threads", "serial"])
def test_bf16_on_a_gpu_that_would_crawl_is_refused_before_anything_starts(
    executor: str, old_gpus: None, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray was started"))
    run = ["cff-vit", "--executor", executor, "--run-dir", str(tmp_path / "run")]
    assert main([*run, "--precision", "bf16"]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "--precision bf16: cuda:1 is a GPU of compute capability 7.5" in said
    assert "bf16 needs 8.0 or higher. Use --precision fp32." in said
    assert not (tmp_path / "run").exists()


def test_tf32_is_refused_where_no_gpu_has_it(old_gpus: None, tmp_path: Path, capsys: Any) -> None:
    run = ["cff-vit", "--executor", "serial", "--run-dir", str(tmp_path / "run"), "--precision", "tf32"]
    assert main([*run, "--device", "cpu"]) == 2
    assert main(run) == 1
    on_cpu, on_gpus = capsys.readouterr().err.splitlines()
    assert on_cpu == "error: --precision tf32: TF32 is a GPU's. Use --precision fp32."
    assert "cuda:1 is a GPU of compute capability 7.5, which has none; tf32 needs 8.0 or higher" in on_gpus
    assert not (tmp_path / "run").exists()


def test_other_precisions_and_gpus_are_not_refused(old_gpus: None) -> None:
    assert local_devices("auto", 1) == Devices("cuda", 2)
    assert local_devices("cpu", 1, "bf16").kind == "cpu"
    check_precision("bf16", torch.device("cuda", 0))


def test_a_bf16_run_is_looked_at_on_the_cpu_where_the_gpu_would_crawl(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    small = ["--width", "16", "--depth", "2", "--epochs", "1", "--readout-epochs", "1", "--data", "digits"]
    run_as = ["--executor", "serial", "--device", "cpu", "--precision", "bf16", "--run-dir", str(run)]
    assert main(["cff-mlp-mnist", *small, *run_as]) == 0
    learned = json.loads((run / "summary.json").read_text())["test_accuracy"]
    capsys.readouterr()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    assert main(["eval", str(run)]) == 0
    said = capsys.readouterr()
    assert f"{learned:.2%}" in said.out
    assert "too old for the run's precision, bf16: the CPU" in " ".join(said.err.split())


def test_every_process_that_computes_refuses_a_precision_that_its_gpu_lacks(old_gpus: None) -> None:
    """A cluster's GPUs are seen by those alone who work on them."""
    spec = replace(tiny_spec(precision="bf16"), device="cuda")
    with pytest.raises(ResourcesError, match=r"`precision` bf16: cuda:1 .* 7\.5, .* Use `precision` fp32\."):
        configure_process(spec, torch.device("cuda", 1))


def test_a_full_disk_is_seen_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    full = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert main([*_RUN, "--run-dir", str(tmp_path / "run")]) == 2
    assert "are free" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_images_that_cannot_be_read_are_counted_or_refused(tmp_path: Path, capsys: Any) -> None:
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(40):
            pixels = rng.normal(level, 20, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    (tmp_path / "photos" / "dark" / "broken.png").write_bytes(b"no image")
    small = [
        "--dim",
        "16",
        "--heads",
        "2",
        "--depth",
        "2",
        "--batch-size",
        "16",
        "--epochs",
        "2",
        "--readout-epochs",
        "2",
    ]
    arguments = [*_RUN, *small, "--data", str(tmp_path / "photos")]
    assert main([*arguments, "--strict-data", "--run-dir", str(tmp_path / "strict")]) == 2
    said = capsys.readouterr().err
    assert "broken.png" in said
    assert "leave out --strict-data to skip it" in said
    assert main([*arguments, "--run-dir", str(tmp_path / "run")]) == 0
    assert "1 file of photos left out. Unreadable image: 1 (dark/broken.png). All are listed" in capsys.readouterr().err
    classes = json.loads((tmp_path / "run" / "config.json").read_text())["data"]["classes"]
    assert classes == ["dark", "light"]
