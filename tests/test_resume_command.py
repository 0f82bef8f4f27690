"""`launch resume` and `launch checkpoint` as a person types them: processes of their own, killed and stopped."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from launch.cli import main
from pipeline.checkpoints.folder import MANIFEST, CheckpointFolder
from tests.support_cli import Launched, launch
from tests.support_pictures import write_blank

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]  # a busy machine takes minutes to start a run

_RUN = ["cff-vit", "--device", "cpu", "--dim", "16", "--heads", "2", "--depth", "3", "--epochs", "6"]
_RUN += ["--readout-epochs", "2"]
_SAVING = ["--checkpoint-every", "7"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a serial run that saved nothing on the way."""
    folder = tmp_path_factory.mktemp("undisturbed")
    flags = ["--executor", "serial", "--checkpoint-every", "off", "-q", "--run-dir", str(folder / "run")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("launch.output.pictures.write", write_blank)
        assert main([*_RUN, *flags]) == 0
    return folder / "run"


def wait_for_checkpoint(launched: Launched, run: Path, more_than: str = "") -> str:
    """Waits until a run has a newer checkpoint; gives its name."""
    folder, end = CheckpointFolder(run / "checkpoints"), time.monotonic() + 240
    while not (found := folder.whole()) or found[-1] <= more_than:
        assert launched.process.poll() is None, launched.text()
        assert time.monotonic() < end, launched.text()
        time.sleep(0.02)
    return found[-1]


def assert_same_run(run: Path, want: Path) -> None:
    """Weights, optimizers, losses, predictions, metrics and TensorBoard, without gap or double."""
    for name in ("model.safetensors", "last.safetensors", "steps.safetensors", "predictions.csv"):
        assert (run / name).read_bytes() == (want / name).read_bytes(), name
    assert lines(run) == lines(want)
    assert events(run) == events(want)


def typed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status and output of a command that ends soon, in this process, where all is imported."""
    capsys.readouterr()
    status = main(list(arguments))
    return status, "".join(capsys.readouterr())


def lines(run: Path) -> list[str]:
    """What is said of layers. What is said of stages, whose number changes, is said of each once."""
    said = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    passes = [(line["kind"], line["epoch"], line["stage"]) for line in said if "layer" not in line]
    assert len(passes) == len(set(passes))
    of_layers = [line for line in said if "layer" in line]
    kept = [{name: value for name, value in line.items() if name not in ("stage", "time")} for line in of_layers]
    return sorted(json.dumps(line) for line in kept)


def events(run: Path) -> dict[tuple[str, int], float]:
    """Every figure of layers in TensorBoard's events, by its tag and place on the axis; each must be there once."""
    found: dict[tuple[str, int], float] = {}
    others: set[tuple[str, int]] = set()
    for file in run.glob("events.out.tfevents*"):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                assert value.tag.endswith("/text_summary") or (value.tag, event.step) not in others
                if re.search(r"/(stage \d+|run)$", value.tag):
                    others.add((value.tag, event.step))
                if "/layer " in value.tag:
                    assert (value.tag, event.step) not in found, f"{value.tag} twice at {event.step}"
                    found[value.tag, event.step] = value.tensor.float_val[0]
    return found


def test_a_run_that_is_killed_goes_on_in_other_stages_and_ends_with_the_same_bits(
    tmp_path: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its launching process dies without a word, twice, and once it is stopped by a scheduler."""
    run = tmp_path / "run"
    first = launch(tmp_path, *_RUN, *_SAVING, "--executor", "threads", "--stages", "2", "--run-dir", str(run))
    key = wait_for_checkpoint(first, run)
    first.process.kill()
    first.finish()
    second = launch(tmp_path, "resume", str(run), "--executor", "ray", "--stages", "3", "--feeders", "2")
    key = wait_for_checkpoint(second, run, more_than=key)
    second.stop(signal.SIGTERM)
    assert second.finish() == 130, second.text()
    assert f"go on with: launch resume {run}" in second.text()
    assert "going on from epoch" in second.text()
    third = launch(tmp_path, "resume", str(run), "--executor", "serial")
    wait_for_checkpoint(third, run, more_than=key)
    third.process.kill()
    third.finish()
    status, said = typed(capsys, "resume", str(run), "--executor", "threads", "--stages", "2")
    assert status == 0, said
    assert_same_run(run, undisturbed)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"
    status, said = typed(capsys, "resume", str(run))
    assert status == 2
    assert "the run is over, after 6 epochs. Give --epochs for more." in said


@pytest.mark.exhaustive  # test_python_api.py has the same bits without a process, and the README's command is run
def test_a_run_that_is_over_goes_on_for_more_epochs(tmp_path: Path, undisturbed: Path) -> None:
    """As if it had been asked for as many at once."""
    shorter = ["--epochs", "4", *(_RUN[: _RUN.index("--epochs")]), *_RUN[_RUN.index("--epochs") + 2 :]]
    arguments = [shorter[2], *shorter[:2], *shorter[3:]]
    first = launch(tmp_path, *arguments, "--executor", "serial", "--run-dir", str(tmp_path / "run"))
    assert first.finish() == 0, first.text()
    more = launch(tmp_path, "resume", str(tmp_path / "run"), "--epochs", "6")
    assert more.finish() == 0, more.text()
    assert_same_run(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("victim", [pytest.param("ray::StageWorker", marks=pytest.mark.exhaustive), "/raylet "])
def test_a_run_goes_on_by_itself_after_a_worker_or_ray_itself_was_killed(
    tmp_path: Path, undisturbed: Path, victim: str
) -> None:
    run = tmp_path / "run"
    launched = launch(tmp_path, *_RUN, *_SAVING, "--stages", "2", "--run-dir", str(run))
    wait_for_checkpoint(launched, run)
    victims = [pid for pid, command in launched.descendants().items() if victim in command]
    os.kill(victims[-1], signal.SIGKILL)
    assert launched.finish(400) == 0, launched.text()
    launched.assert_nothing_left()
    said = launched.text()
    assert re.search(r"(stage \d \(.*\) died|host \S+ lost): .* Going on from .* \(restart 1 of 3\)\.", said), said
    assert re.search(r"The run goes on, [\d.]+ s after the failure\.", said), said
    assert "Started anew: stage" in said if "Stage" in victim else "starting Ray anew" in said
    assert "(raylet)" not in said  # Ray's own paragraphs and stacks
    assert_same_run(run, undisturbed)


def test_a_checkpoint_is_saved_when_somebody_asks_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    launched = launch(tmp_path, *_RUN[:-4], "--epochs", "400", "--executor", "serial", "--run-dir", str(run))
    launched.wait_for("epoch 1/400")
    (tmp_path / "other").mkdir()
    asking = launch(tmp_path / "other", "checkpoint", str(run))
    assert asking.finish() == 0, asking.text()
    (key,) = CheckpointFolder(run / "checkpoints").whole()
    assert asking.text().startswith("saved: epoch ") and key in asking.text()
    status, said = typed(capsys, "resume", str(run))
    assert status == 2
    assert "another process writes to it" in said
    launched.stop(signal.SIGINT)
    assert launched.finish() == 130
    status, said = typed(capsys, "checkpoint", str(run))
    assert status == 2
    assert "no run goes on there" in said


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped, with two checkpoints at least."""
    folder = tmp_path_factory.mktemp("stopped")
    launched = launch(folder, *_RUN, *_SAVING, "--executor", "serial", "--run-dir", str(folder / "run"))
    first = wait_for_checkpoint(launched, folder / "run")
    wait_for_checkpoint(launched, folder / "run", more_than=first)
    launched.process.kill()
    launched.finish()
    assert len(CheckpointFolder(folder / "run" / "checkpoints").whole()) >= 2  # it may have been removing the oldest
    return folder / "run"


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def changed(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("layer-2.safetensors", changed, "layer-2.safetensors has other bytes than were written"),
        *(
            pytest.param(*case, marks=pytest.mark.exhaustive)  # test_checkpoints.py has them without a process
            for case in (
                ("layer-2.safetensors", cut_short, r"layer-2.safetensors is .* bytes of"),
                ("layer-1.safetensors", Path.unlink, "layer-1.safetensors is missing"),
                (MANIFEST, cut_short, "its manifest cannot be read"),
            )
        ),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path,
    stopped: Path,
    undisturbed: Path,
    name: str,
    damage: object,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    newest = CheckpointFolder(run / "checkpoints").whole()[-1]
    damage(run / "checkpoints" / newest / name)  # type: ignore[operator]
    status, told = typed(capsys, "resume", str(run))
    assert status == 0, told
    assert said.rsplit(".*", maxsplit=1)[-1] in told
    assert "The checkpoint before it is used." in told
    assert_same_run(run, undisturbed)


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        ({"format": 2}, [], "format 2; this version reads 1. Go on with the version that wrote it."),
        ({}, ["--epochs", "0"], "--epochs 0"),
        ({}, ["--stages", "9"], "--stages 9"),
        ({"config": 3}, [], "does not say what run it is of"),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused_and_nothing_is_overwritten(
    tmp_path: Path,
    stopped: Path,
    change: dict[str, object],
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    for key in CheckpointFolder(run / "checkpoints").whole():
        file = run / "checkpoints" / key / MANIFEST
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != ".lock"}
    status, told = typed(capsys, "resume", str(run), *arguments)
    assert status == 2, told
    assert said in told
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != ".lock"}


def test_another_learning_rate_is_allowed_and_said(
    tmp_path: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    status, told = typed(capsys, "resume", str(run), "--lr", "1e-3")
    assert status == 0, told
    assert "--lr 0.001 in place of 0.004: from here on the numbers are other than the run's own." in told


@pytest.mark.parametrize("how", [pytest.param("gone", marks=pytest.mark.exhaustive), "changed"])
def test_a_shard_that_is_lost_amid_an_epoch_ends_the_run_which_goes_on_when_it_is_back(
    how: str,
    tmp_path: Path,
    undisturbed: Path,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Symptom: a byte that changed while the run went on was learned from."""
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(data_dir / "digits", data / "digits")
    monkeypatch.setenv("LOCALPIPE_DATA", str(data))
    arguments = ["--executor", "threads", "--stages", "2", "--memory-budget", "0", "--run-dir", str(run)]
    launched = launch(tmp_path, *_RUN, *_SAVING, *arguments)
    key = wait_for_checkpoint(launched, run)
    launched.stop(signal.SIGSTOP)  # or it might be over before the shard is lost
    shard = data / "digits" / "train-000000.tar"
    content = shard.read_bytes()
    if how == "gone":
        shard.unlink()
    else:
        shard.touch()  # the same bytes are no reason to end
        launched.stop(signal.SIGCONT)
        wait_for_checkpoint(launched, run, more_than=key)
        launched.stop(signal.SIGSTOP)
        shard.write_bytes(content[:9000] + b"?" + content[9001:])
    launched.stop(signal.SIGCONT)
    assert launched.finish() == 1
    said = {"gone": "cannot be read (No such file or directory)", "changed": "has been changed since it was opened"}
    assert f"{shard}" in launched.text() and said[how] in launched.text()
    assert launched.text().splitlines()[-1].endswith(f"Go on with: launch resume {run}")
    shard.write_bytes(content)
    status, told = typed(capsys, "resume", str(run))
    assert status == 0, told
    assert_same_run(run, undisturbed)
