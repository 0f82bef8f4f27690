"""`launch PRESET … --sweep …`: a grid of real runs, each a process of its own, and one table; it can go on."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import statistics
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from launch.output.seeds import chance
from launch.sweep.grid import Point
from launch.sweep.processes import Devices
from tests.support_cli import ROOT, launch

_SMALL = ("cff-vit", "--executor", "serial", "--dim", "16", "--heads", "2", "--depth", "2", "--readout-epochs", "1")
_SHORT = (*_SMALL, "--max-steps", "12")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts the tests may have a narrow terminal."""
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """A sweep of two learning rates with two seeds each: its folder, the command, and what it printed."""
    folder = tmp_path_factory.mktemp("sweeps") / "the-sweep"
    command = [*_SHORT, "--sweep", "lr=4e-3,1e-5", "--seeds", "2", "--run-dir", str(folder)]
    launched = launch(folder.parent, *command)
    assert launched.finish() == 0, launched.text()
    return folder, command, launched.text()


def summaries(folder: Path, pattern: str) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob(f"{pattern}/summary.json"))]


def spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2%} ± {statistics.stdev(values):.2%}"


@pytest.mark.slow
def test_a_table_has_mean_and_deviation_over_seeds_for_each_point(swept: tuple[Path, list[str], str]) -> None:
    folder, _, printed = swept
    rows = {line.split("│")[0].strip(): [c.strip() for c in line.split("│")] for line in printed.splitlines()}
    kept = {point["settings"]["lr"]: point for point in json.loads((folder / "sweep.json").read_text())["points"]}
    with (folder / "sweep.csv").open() as file:
        table = {row["lr"]: row for row in csv.DictReader(file)}
    for lr in ("4e-3", "1e-5"):
        runs = summaries(folder, f"lr={lr},seed=*")
        assert [run["seed"] for run in runs] == [0, 1]
        accuracies = [run["test_accuracy"] for run in runs]
        assert rows[lr][1:3] == ["2", spread(accuracies)]
        mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
        assert kept[lr]["test_accuracy"] == {"mean": mean, "deviation": deviation}
        speed = [run["speed"]["images_per_second"] for run in runs]
        assert float(table[lr]["images_per_second_mean"]) == pytest.approx(statistics.mean(speed))
        assert float(table[lr]["test_accuracy_deviation"]) == pytest.approx(deviation)
    configs = [json.loads(file.read_text()) for file in folder.glob("*/config.json")]
    assert sorted(one["settings"]["train"]["lr"] for one in configs) == [1e-5, 1e-5, 4e-3, 4e-3]
    assert "best: lr=" in printed and "Welch's t-test, 2 and 2 seeds" in printed


@pytest.mark.slow
def test_the_same_command_runs_nothing_twice_and_more_seeds_alone(
    swept: tuple[Path, list[str], str], capsys: Any
) -> None:
    folder, command, _ = swept
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*/summary.json")}
    assert main(command) == 0
    assert "4 runs of before: finished, and not run again" in capsys.readouterr().out
    assert main([*_SHORT, "--sweep", "lr=1e-5", "--seeds", "3", "--run-dir", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "lr=1e-5,seed=2: finished" in printed and "lr=4e-3,seed=2: finished" in printed
    assert len(list(folder.glob("*/summary.json"))) == 6
    assert before == {file: file.stat().st_mtime_ns for file in before}
    assert main([*_SHORT, "--epochs", "3", "--sweep", "lr=1e-5", "--run-dir", str(folder)]) == 2
    assert "holds another sweep (cff-vit --executor serial" in capsys.readouterr().err


@pytest.mark.slow
def test_commands_on_runs_take_a_sweep_as_a_folder_of_them(swept: tuple[Path, list[str], str], capsys: Any) -> None:
    folder, _, _ = swept
    for place in (folder, folder.parent):
        assert main(["runs", str(place)]) == 0
        printed = capsys.readouterr().out
        assert "the-sweep/lr=4e-3,seed=0" in printed and "the-sweep/lr=1e-5,seed=1" in printed
    assert main(["compare", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"train\.lr +│ +1e-05 │ +0\.004", printed) and "Welch's t-test" in printed
    assert main([*_SHORT, "--run-dir", str(folder)]) == 2
    assert "is a sweep's folder. Give --sweep or --seeds as well, or a new folder." in capsys.readouterr().err


@pytest.mark.slow
def test_tensorboard_has_the_runs_settings_side_by_side(swept: tuple[Path, list[str], str], tmp_path: Path) -> None:
    launched = launch(tmp_path, "dashboard", str(swept[0]))
    launched.wait_for("Ctrl-C ends it.", 120)
    found = re.search(r"(http://127\.0\.0\.1:\d+/)", launched.text())
    assert found is not None, launched.text()
    wanted = {f"the-sweep/lr={lr},seed={seed}" for lr in ("4e-3", "1e-5") for seed in (0, 1)}
    end = time.monotonic() + 120
    groups: list[dict[str, Any]] = []
    measured: list[str] = []
    # It reads the runs' events, of which results are the last, after it has begun to serve.
    while measured.count("result/test accuracy") < len(wanted) and time.monotonic() < end:
        groups = asked(f"{found[1]}data/plugin/hparams/session_groups", statuses=["STATUS_UNKNOWN", "STATUS_SUCCESS"])
        measured = [value["name"]["tag"] for group in groups for value in group["metricValues"]]
        time.sleep(0.5)
    rates = {group["name"].removesuffix("/"): group["hparams"]["train.lr"] for group in groups}
    assert wanted <= rates.keys()
    assert all(rates[name] == pytest.approx(4e-3 if "4e-3" in name else 1e-5) for name in wanted)
    assert measured.count("result/test accuracy") == len(groups)
    launched.stop(signal.SIGINT)
    assert launched.finish(60) == 0


def asked(url: str, *, statuses: list[str]) -> list[dict[str, Any]]:
    wanted = {"allowedStatuses": statuses, "startIndex": 0, "sliceSize": 100, "colParams": []}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(wanted).encode(), headers)  # noqa: S310 (what the command printed)
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        groups: list[dict[str, Any]] = json.load(answer).get("sessionGroups", [])
        return groups


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(900)  # it waits for two sweeps
def test_a_killed_run_ends_alone_and_a_stopped_sweep_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    flags = ("--epochs", "60", "--checkpoint-every", "20", "--seeds", "3", "--at-once", "2")
    begun = launch(tmp_path, *_SMALL, *flags, "--run-dir", str(folder))
    runs = [folder / f"seed={seed}" for seed in range(3)]
    wait_until(lambda: all(list(run.glob("checkpoints/*/manifest.json")) for run in runs[:2]), begun.text)
    killed = next(
        pid for pid, command in begun.descendants().items() if str(runs[0]) in command and "launch" in command
    )
    os.kill(killed, signal.SIGKILL)
    begun.wait_for("seed=0: ended by SIGKILL (1 of 3)")
    begun.wait_for("seed=2: begins")
    for pid in (begun.process.pid, *begun.descendants()):  # as Ray stops a job, which tells all of its processes
        os.kill(pid, signal.SIGTERM)
    assert begun.finish(120) == 130, begun.text()
    begun.assert_nothing_left()
    assert "seed=1: interrupted" in begun.text() and f"go on with: launch resume {folder}" in begun.text()
    assert re.search(r"0 of 3 \(.*1 cut off", begun.text())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = launch(elsewhere, "resume", str(folder))
    assert again.finish(240) == 0, again.text()
    assert "seed=0: goes on" in again.text() and "seed=1: goes on" in again.text()
    found = summaries(folder, "seed=*")
    assert [(one["status"], one["epochs_finished"]) for one in found] == [("finished", 60)] * 3
    assert spread([one["test_accuracy"] for one in found]) in again.text()


def wait_until(happened: Any, said: Any, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, said()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_that_fails_does_not_end_the_sweep(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "sweep"
    assert main([*_SHORT, "--checkpoint-every", "off", "--sweep", "lr=1e30,1e-3", "--run-dir", str(folder)]) == 1
    printed = capsys.readouterr().out
    assert "lr=1e30,seed=0: failed, error: stage 1, layer" in printed and "the loss is" in printed
    assert re.search(r"1e30 +│ 0 of 1 \(1 failed\) +│ +–", printed) and re.search(r"1e-3 +│ 1 +│ +\d", printed)
    assert "best: lr=1e-3" in printed and f"go on with: launch resume {folder}" in printed


def test_a_dry_run_prints_the_grid_and_starts_nothing(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "sweep"
    command = [*_SHORT, "--sweep", "lr=1e-3,1e-2", "readout-norm=on,off", "--seed", "7", "--seeds", "2"]
    assert main([*command, "--dry-run", "--run-dir", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "lr=1e-2,readout-norm=off,seed=8" in printed
    assert f"8 runs in {folder}. Nothing was started (--dry-run)." in printed
    assert not folder.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sweep"], "--sweep: give a setting and its values"),
        (["--sweep", "lr="], "--sweep lr=: a value is missing."),
        (["--sweep", "lr=1e-3,,2e-3"], "a value is missing."),
        (["--sweep", "lrr=1e-3"], "unknown setting 'lrr'. Did you mean 'lr'?"),
        (["--sweep", "lr=fast"], "Error parsing --lr"),
        (["--sweep", "lr=1e-3,1e-3"], "1e-3 is there twice."),
        (["--sweep", "lr=1e-3,0.001"], "lr=1e-3 and lr=0.001 are the same run."),
        (["--sweep", "lr=1e-3", "lr=1e-2"], "--sweep lr: is given twice."),
        (["--lr", "1e-3", "--sweep", "lr=1e-3"], "--lr is given and swept over."),
        (["--sweep", "stages=1,9", "--executor", "threads"], "--stages 9: this net has 2 layers"),
        (["--sweep", "batch-size=64,5000"], "--batch-size 5000: digits has"),
        (["--sweep", "run-dir=a,b"], "it says where the sweep goes."),
        (["--sweep", "readout-norm=yes"], "readout-norm is on or off, not yes."),
        (["--sweep", "lr=1e-3 --seed 3"], "is no value."),
        (["--sweep", "seed=0,1", "--seeds", "2"], "--seeds and --sweep seed=…: give one of them."),
        (["--sweep", "seed=one"], "a seed is a whole number"),
        (["--seeds", "0"], "--seeds 0: must be a whole number from 1"),
        (["--seeds"], "--seeds needs a number of seeds"),
        (["--at-once", "2"], "--at-once: goes with --sweep or --seeds."),
    ],
)
def test_a_mistake_is_one_message_before_anything_starts(
    flags: list[str], said: str, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "sweep"
    small = [*_SHORT, "--run-dir", str(folder)]
    try:
        status: Any = main([*small, *flags])
    except SystemExit as end:  # tyro's own way to say that a value cannot be
        status = end.code
    printed = capsys.readouterr()
    assert status == 2 and said in " ".join(printed.err.split()), printed
    assert not printed.out and not folder.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seeds": []}, "has no arguments, seeds or values"),
        ({"arguments": []}, "has no arguments, seeds or values"),
        ({"axes": {"readout-norm": ["yes"]}, "switches": ["readout-norm"]}, "has no arguments, seeds or values"),
        ({"arguments": ["cff-vitt"]}, "unknown preset 'cff-vitt'. Did you mean 'cff-vit'?"),
        ({"axes": 3}, "sweep.json: cannot be read"),
        ({"format": 9}, "sweep.json: format 9; this version reads 1."),
    ],
)
def test_a_damaged_sweep_is_a_sentence(change: dict[str, Any], said: str, tmp_path: Path, capsys: Any) -> None:
    whole = {"arguments": ["cff-vit"], "plugins": [], "axes": {}, "switches": [], "seeds": [0], "format": 1}
    (tmp_path / "sweep.json").write_text(json.dumps({**whole, **change}))
    assert main(["resume", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_a_sweep_goes_on_as_it_was_asked_for(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    assert main(["resume", str(tmp_path), "--epochs", "80", "--lr", "1"]) == 2
    assert "is a sweep, which goes on as it was asked for. Leave out --epochs, --lr." in capsys.readouterr().err


def test_a_plug_in_of_the_runs_is_known_to_their_sweep(tmp_path: Path, capsys: Any) -> None:
    plugin = str(ROOT / "examples" / "plugin_tiles.py")
    command = ["--plugin", plugin, *_SHORT, "--data", "tiles", "--seeds", "2", "--run-dir", str(tmp_path / "sweep")]
    assert main([*command, "--dry-run"]) == 0
    assert "2 runs in" in capsys.readouterr().out


def test_a_run_s_folder_and_flags_are_those_of_its_point() -> None:
    point = Point({"partition": "3 2", "flip": "on", "compile": "off", "data": "'my photos/a'"})
    assert point.run_name(4) == "partition=3-2,flip=on,compile=off,data=-my-photos-a-,seed=4"
    flags = point.flags(frozenset({"flip"}), 4)
    assert flags == ["--partition", "3", "2", "--flip", "--compile", "off", "--data", "my photos/a", "--seed", "4"]


def test_devices_are_handed_out_once() -> None:
    devices = Devices({"cuda": ["0", "3", "5"], "cpu": ["0"]})
    first = devices.take("cuda", 2)
    assert first == ["0", "3"] and devices.take("cuda", 2) is None and devices.take("cuda", 1) == ["5"]
    devices.give_back("cuda", first)
    assert devices.take("cuda", 2) == ["0", "3"] and devices.take("cpu", 1) == ["0"]


def test_chance_is_told_only_where_there_is_a_spread() -> None:
    assert chance([0.9], [0.8, 0.7]) is None and chance([0.9, 0.9], [0.8, 0.8]) is None
    p = chance([0.90, 0.91, 0.92], [0.80, 0.81, 0.82])
    assert p is not None and p < 0.01
