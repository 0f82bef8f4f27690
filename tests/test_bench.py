"""The benchmark: its arithmetic on rounds that are given, its turns, and whole benchmarks of tiny nets."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pytest
import torch
from rich.console import Console

from launch.bench import ablation, ablation_steps, memory
from launch.bench.accuracy import Curve, times_to
from launch.bench.arguments import DEFAULT, BenchArguments, check, output_folder
from launch.bench.backprop.entry import backprop_runners
from launch.bench.conclusion import FeederRate, conclude
from launch.bench.entries import NAMES, THEIRS, Entry, chosen, compete, in_turn, sources_of
from launch.bench.feeding import FeederSpeed, feeder_speed
from launch.bench.figures import Figures, figures_of
from launch.bench.ours import (
    ROWS,
    PipelineRunner,
    Source,
    StageUse,
    drain,
    joined,
    pace,
    spec_of,
    stage_use,
    turns_of,
)
from launch.bench.plain import PlainLoop
from launch.bench.protocol import CannotRunError, DeviceUse, Round, Runner
from launch.bench.report import cells
from launch.cli import main
from pipeline.config import build
from pipeline.config.devices import Devices
from pipeline.config.partition import partition
from pipeline.config.settings import DataSettings, Settings
from pipeline.data.augment import Augment
from pipeline.errors import StageFailedError, UserError
from pipeline.nets import VitSettings
from pipeline.runtime.passes import Pass
from pipeline.telemetry.clock import TimeCategory
from pipeline.telemetry.reports import PassReport, StepTimes
from tests.conftest import make_run
from tests.support_cli import launch
from workers.group import RayWorkers

BATCH = 10
TINY = ["--data", "digits", "--dim", "16", "--heads", "2", "--depth", "2", "--batch-size", "64", "--device", "cpu"]
QUIET = Console(file=StringIO())


class Told(Runner):
    """A runner whose rounds are given: images/s of each, or what it raises."""

    def __init__(
        self,
        name: str,
        speeds: Sequence[float | Exception] = (),
        *,
        family: Literal["backprop", "local"] = "backprop",
        busy: Sequence[float] = (),
        start: Exception | None = None,
        log: list[str] | None = None,
        loss: float = 1.0,
    ) -> None:
        self.name, self.title, self.family = name, name.upper(), family
        self._speeds, self._busy, self._start, self._loss = list(speeds), busy, start, loss
        self.log = log if log is not None else []
        self.closed = 0

    def start(self) -> None:
        if self._start is not None:
            raise self._start

    def round(self, steps: int) -> Round:
        self.log.append(self.name)
        speed = self._speeds.pop(0)
        if isinstance(speed, Exception):
            raise speed
        return given_round(speed, steps=steps, busy=self._busy, loss=self._loss)

    def close(self) -> None:
        self.closed += 1


def given_round(speed: float, *, steps: int = 2, busy: Sequence[float] = (), loss: float = 1.0) -> Round:
    """A round at so many images/s; ``busy``: seconds of a step of each stage."""
    seconds = steps * BATCH / speed
    devices: list[DeviceUse] = []
    for number, each in enumerate(busy):
        spent = {"busy": each * steps, "wait_in": seconds - each * steps}
        devices.append(StageUse(name=f"stage {number + 1}", seconds=spent, peak_bytes=2**20, step_seconds=each))
    plain = DeviceUse(name="rank 1", seconds={"busy": 0.75 * seconds, "other": 0.25 * seconds}, peak_bytes=2**20)
    return Round(
        images=steps * BATCH,
        seconds=seconds,
        devices=tuple(devices) or (plain,),
        bytes_per_step=4,
        loss=loss,
    )


def measured(
    name: str,
    speeds: Sequence[float],
    *,
    family: Literal["backprop", "local"] = "backprop",
    busy: Sequence[float] = (),
    source: Source = "memory",
) -> Entry:
    rounds = {number: given_round(speed, busy=busy) for number, speed in enumerate(speeds)}
    return Entry(runner=Told(name, family=family), source=source, start_seconds=1.0, rounds=rounds)


def rows_of(*entries: Entry) -> list[Figures]:
    return figures_of(entries, BATCH)


def test_medians_ratios_and_paired_ratios() -> None:
    ddp, ours = rows_of(measured("ddp", [100, 50, 200]), measured("cff-1", [150, 100, 240], family="local"))
    assert (ours.images_per_second, ours.low, ours.high) == pytest.approx((150, 100, 240))
    assert ours.to_backprop is not None
    assert ours.to_backprop.of_medians == pytest.approx(1.5)
    # Round by round: 1.5, 2.0, 1.2. A round in which the machine was slow for all does not widen it.
    assert (ours.to_backprop.paired, ours.to_backprop.low, ours.to_backprop.high) == pytest.approx((1.5, 1.2, 2.0))
    assert ours.to_serial is None
    assert ours.step_seconds == pytest.approx(BATCH / 150)
    assert ddp.to_backprop is not None
    assert ddp.to_backprop.low == ddp.to_backprop.high == 1.0


def test_rounds_are_paired_by_number_where_one_row_lacks_some() -> None:
    ours = measured("cff-1", [150, 100, 240], family="local")
    del ours.rounds[0]
    (_, row) = rows_of(measured("ddp", [100, 50, 200]), ours)
    assert row.to_backprop is not None
    assert (row.to_backprop.low, row.to_backprop.high) == pytest.approx((1.2, 2.0))


def test_a_row_with_the_feeder_is_held_against_rows_with_the_feeder() -> None:
    rows = rows_of(
        measured("ddp", [100]),
        measured("cff-serial-1", [60], family="local"),
        measured("ddp", [80], source="feeder"),
        measured("cff-1", [160], family="local", source="feeder"),
    )
    fed = rows[-1]
    assert fed.to_backprop is not None and fed.to_serial is not None
    assert fed.to_backprop.of_medians == pytest.approx(2.0)
    assert fed.to_serial.of_medians == pytest.approx(160 / 60), "from memory, as it does not run with the feeder"


def test_rows_of_a_preset_are_held_against_its_serial_row() -> None:
    serial, pipelined = rows_of(measured("serial", [60], family="local"), measured("pipelined", [90], family="local"))
    assert pipelined.to_serial is not None and pipelined.to_serial.of_medians == pytest.approx(1.5)
    assert serial.to_backprop is None


def test_ideal_is_the_slowest_stage_and_efficiency_what_is_reached_of_it() -> None:
    # Stages of 0.08 and 0.1 s a step: at best a batch of 10 every 0.1 s, and 1.8 stages' work at a time.
    (row,) = rows_of(measured("cff-1", [90], family="local", busy=[0.08, 0.1]))
    assert row.ideal is not None
    assert row.ideal.images_per_second == pytest.approx(100)
    assert row.ideal.speedup == pytest.approx(1.8)
    assert row.ideal.efficiency == pytest.approx(0.9)
    assert row.ideal.measured_speedup == pytest.approx(1.62)
    assert [device.shares["busy"] for device in row.devices] == pytest.approx([0.72, 0.9])
    assert cells(row, ranges=True)[5] == "1.62 (1.80)"


def steps_at(ended: Sequence[float], busy: Sequence[float]) -> StepTimes:
    spent = np.zeros((len(ended), len(TimeCategory)))
    spent[:, list(TimeCategory).index(TimeCategory.BUSY)] = busy
    return StepTimes(np.array(ended), spent)


def test_the_pace_is_that_of_the_stage_that_took_longest() -> None:
    """Symptom: a queue that had filled up was emptied in the measured steps, and speed was above the ideal."""
    first = steps_at([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    second = steps_at([4, 4.5, 5, 5.5, 6], [0.4, 0.8, 1.2, 1.6, 2.0])
    assert pace([first, second], warm=1, steps=3) == (1, 4)
    assert pace([second, first], warm=1, steps=3) == (1, 4)


def test_a_stage_is_accounted_for_between_two_moments_and_its_step_over_its_own_steps() -> None:
    use = stage_use("stage 2", steps_at([4, 5, 6, 7], [0.5, 1.0, 1.5, 2.0]), 4.5, 6.5, 7, warm=1, steps=2)
    assert use.seconds["busy"] == pytest.approx(1.0)
    assert use.seconds["other"] == pytest.approx(1.0)
    assert use.step_seconds == pytest.approx(0.5)
    assert use.peak_bytes == 7


def test_conclusion_names_the_winner_and_by_how_much() -> None:
    said = conclude(rows_of(measured("ddp", [100, 101]), measured("cff-1", [150, 152], family="local")))
    assert said[0].startswith("CFF-1 wins: 151 images/s, 1.50 times the fastest backprop row, DDP (100 images/s)")


def test_conclusion_says_so_when_ddp_wins() -> None:
    said = conclude(rows_of(measured("ddp", [200, 210]), measured("cff-1", [150, 152], family="local")))
    assert said[0].startswith("DDP wins: 205 images/s, 1.36 times the fastest row of local learning, CFF-1")


def test_a_pipeline_is_held_against_the_fastest_one_of_backprop() -> None:
    rows = rows_of(
        measured("gpipe-8", [100, 101, 102]),
        measured("1f1b-8", [110, 120, 115]),
        measured("serial", [90, 90, 90], family="local"),
        measured("pipelined", [138, 132, 161], family="local", busy=[0.05, 0.05]),
    )
    assert [None if row.rival is None else row.rival.name for row in rows] == [None, None, None, "1f1b-8"]
    said = conclude(rows)
    assert (
        "pipelined is 1.20 times as fast as 1f1b-8 (1.10 to 1.40 round by round), the fastest pipeline of "
        "backpropagation."
    ) in said
    assert "pipelined: stage 1, stage 2." in said, "which stages there are"


def test_conclusion_gives_no_reason_for_an_ideal_of_equal_stages() -> None:
    rows = rows_of(measured("cff-1", [90], family="local", busy=[0.1, 0.1]))
    (ideal,) = [sentence for sentence in conclude(rows) if "of its ideal" in sentence]
    assert "speed-up 1.80 of 2.00. Its slowest" in ideal


def test_conclusion_calls_no_winner_where_rounds_overlap() -> None:
    said = conclude(rows_of(measured("ddp", [100, 160]), measured("cff-1", [150, 152], family="local")))
    assert said[0].startswith("Nobody wins clearly: CFF-1 has 151 images/s")


def test_conclusion_says_what_the_pipeline_loses_and_to_what() -> None:
    rows = rows_of(measured("cff-1", [90], family="local", busy=[0.08, 0.1]))
    (ideal,) = [sentence for sentence in conclude(rows) if "of its ideal" in sentence]
    assert ideal == (
        "cff-1 reaches 90.0 % of its ideal: speed-up 1.62 of 1.80. It is not 2 because the stages' steps take 80.0 and "
        "100.0 ms. Its slowest stage, stage 2, computed 90.0 % of the time; 10.0 % to waiting for input."
    )


@pytest.mark.parametrize(("speed", "verdict"), [(190, "confirmed"), (120, "not reached")])
def test_conclusion_holds_the_papers_experiment_against_its_claim(speed: float, verdict: str) -> None:
    rows = rows_of(measured("backprop", [60]), measured("ddp", [100]), measured("cff-1", [speed], family="local"))
    (claim,) = [sentence for sentence in conclude(rows, paper=True) if "paper" in sentence]
    assert f"{speed / 100:.2f} times DDP and {speed / 60:.2f} times backprop on one of them" in claim
    assert verdict in claim


def test_conclusion_warns_of_a_feeder_that_is_hardly_fast_enough() -> None:
    rows = rows_of(measured("cff-1", [90], family="local"))
    enough = conclude(rows, feeder=FeederRate(speed=FeederSpeed(first=50, later=180), needed=90))
    hardly = conclude(rows, feeder=FeederRate(speed=FeederSpeed(first=50, later=99), needed=90))
    assert any("2.0 times what the fastest pipeline takes, and 50 in its first epoch" in said for said in enough)
    assert not any("--feeders" in said for said in enough)
    assert any("1.1 times" in sentence and "--feeders" in sentence for sentence in hardly)


def test_a_feeder_alone_is_timed_in_its_first_epoch_and_later() -> None:
    settings = tiny_settings(depth=2)
    speed = feeder_speed(settings, build.open_data(settings), seconds=0.05)
    assert speed.first > 0 and speed.later > 0
    assert torch.get_num_threads() == 1, "threads are as before"


def test_every_round_begins_one_row_further() -> None:
    entries = [measured(name, []) for name in "abc"]
    orders = ["".join(entry.name for entry in in_turn(entries, number)) for number in range(4)]
    assert orders == ["abc", "bca", "cab", "abc"]


def test_rows_take_turns_and_a_row_that_fails_drops_out() -> None:
    log: list[str] = []
    rows = [
        Told("good", [100, 110, 120], log=log),
        Told("absent", start=CannotRunError("needs 2 devices or more"), log=log),
        Told("weak", [90, StageFailedError("stage 2 died"), 90], log=log),
        Told("nan", [1000], log=log, loss=float("nan")),
    ]
    entries = [Entry(runner=row, source="memory") for row in rows]
    said: list[str] = []
    compete(entries, rounds=3, steps=2, say=said.append)
    assert log == ["good", "weak", "nan", "weak", "good", "good"]
    assert [sorted(entry.rounds) for entry in entries] == [[0, 1, 2], [], [0], []]
    assert entries[0].trouble is None
    assert entries[1].trouble == "needs 2 devices or more"
    assert "StageFailedError: stage 2 died" in (entries[2].trouble or "")
    assert "its loss is nan" in (entries[3].trouble or "")
    assert all(row.closed for row in rows)
    assert any("needs 2 devices" in sentence for sentence in said)
    assert any("absent" in sentence and "weak" in sentence for sentence in conclude(figures_of(entries, BATCH)))


def test_a_stop_keeps_what_was_measured_and_ends_everyone() -> None:
    rows = [Told("a", [100, 100]), Told("b", [100, KeyboardInterrupt()])]  # type: ignore[list-item]

    class Stopping(Told):
        def round(self, steps: int) -> Round:
            if len(self.log) == 1:
                raise KeyboardInterrupt
            return super().round(steps)

    rows[1] = Stopping("b", [100])
    entries = [Entry(runner=row, source="memory") for row in rows]
    with pytest.raises(KeyboardInterrupt):
        compete(entries, rounds=2, steps=2, say=lambda sentence: None)
    assert [sorted(entry.rounds) for entry in entries] == [[0], [0]]
    assert all(row.closed for row in rows)


def test_time_to_an_accuracy_is_steps_times_the_rows_own_step() -> None:
    rows = rows_of(
        measured("backprop", [50]),
        measured("cff-1", [200], family="local"),
        measured("cff-1", [100], family="local", source="feeder"),
        measured("cfl", [100], family="local"),
    )
    learned = [
        Curve(method="cff-1", accuracies=(0.2, 0.5), steps_per_epoch=30, reached=2),
        Curve(method="backprop", accuracies=(0.1, 0.3, 0.2), steps_per_epoch=30, reached=None),
    ]
    backprop, fed = times_to(rows, learned)
    assert fed.row == "cff-1 (feeder)"
    assert (fed.epochs, fed.steps, fed.seconds) == (2, 60, pytest.approx(60 * BATCH / 100))
    assert backprop.seconds is None
    assert backprop.cells()[-1] == "not reached in 3 epochs (best 30.00 %)"


def test_rows_of_backprop_are_those_that_the_rivals_package_makes(small_settings: Settings) -> None:
    spec, dataset = make_run(small_settings)
    assert [row.name for row in backprop_runners(spec, 2, dataset=dataset)] == list(THEIRS)


def test_the_feeder_is_in_the_loop_of_the_rows_that_matter() -> None:
    assert sources_of("ddp", "both", NAMES) == ("memory", "feeder")
    assert sources_of("gpipe-8", "both", NAMES) == ("memory",)
    assert sources_of("gpipe-8", "both", ("gpipe-8",)) == ("memory", "feeder"), "nothing else would show it"
    assert sources_of("gpipe-8", "feeder", NAMES) == ("feeder",)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rounds", "0"], "--rounds 0"),
        (["--steps", "0"], "--steps 0"),
        (["--devices", "0"], "--devices 0"),
        (["--only", "dpp"], "--only dpp: there is no such row. Rows: backprop"),
        (["--only", "ddp", "--without", "ddp"], "no row is left"),
        (["--to-accuracy", "0.6"], "give per cent"),
        (["--stages", "3"], "--stages 3: this net has 2 layers"),
        (["--baseline", "bp"], "--only"),
        (["--out", "."], "--out"),
        (["--preset", "dcl-vgg8"], "--preset dcl-vgg8: unknown preset 'dcl-vgg8'. Did you mean 'dcl-vgg8b'?"),
        (["--preset", "cff-vit", "--only", "cff-1"], "--only cff-1: there is no such row. Rows: backprop"),
        (["--preset", "cff-vit", "--ablate"], "--preset cff-vit: --ablate measures CFF on ViT alone"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(flags: list[str], said: str, capsys: Any) -> None:
    assert main(["bench", *TINY, *flags]) == 2
    assert said in capsys.readouterr().err


def test_an_unknown_benchmark_names_those_there_are(capsys: Any) -> None:
    assert main(["bench", "papre"]) == 2
    assert "paper, memory and transport" in capsys.readouterr().err


def test_a_balanced_partition_leaves_no_device_idle() -> None:
    """Symptom: where a second stage gains little, the planner took one, and the pipelined row was refused."""
    settings = tiny_settings(depth=2)
    balanced = replace(settings, pipeline=replace(settings.pipeline, partition="balanced"))
    assert spec_of(ROWS["cff-1"], balanced, Devices("cpu", 2), QUIET).stages == partition(2, 2)


def test_turns_are_epochs_of_their_own_length() -> None:
    settings = tiny_settings(depth=2)
    spec = spec_of(ROWS["cff-1"], settings, Devices("cpu", 2), QUIET)
    turns = turns_of(spec, "memory", warm=2, steps=3)
    assert drain(spec) == 4, "so far can the first of two stages be ahead, with two messages in the queue"
    assert turns.steps_per_epoch == 2 + 3 + 4
    dataset = build.open_folder(turns.settings, Path(turns.data_folder))
    assert dataset.num_batches("train", 64) == turns.steps_per_epoch
    assert turns.settings.pipeline.feeders == 0
    assert turns_of(spec, "feeder", warm=2, steps=3).settings.pipeline.feeders == 1
    assert turns_of(spec, "memory", warm=2, steps=300).steps_per_epoch == spec.steps_per_epoch, "no more than there is"


def tiny_settings(depth: int, batch_size: int = 64) -> Settings:
    return replace(
        DEFAULT,
        data=DataSettings(data="digits"),
        net=VitSettings(dim=16, heads=2, depth=depth),
        train=replace(DEFAULT.train, batch_size=batch_size),
        pipeline=replace(DEFAULT.pipeline, device="cpu"),
    )


@pytest.mark.exhaustive
def test_no_measured_pass_is_the_first_of_its_workers(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Symptom: on GPUs every measured pass decoded its images and compiled, while the rivals' did not."""
    spec = turns_of(spec_of(ROWS["cff-1"], tiny_settings(depth=2), Devices("cpu", 2), QUIET), "memory", warm=1, steps=2)
    fed: list[list[int]] = []  # each group's passes, by their epochs
    measured: list[list[int]] = []  # the passes that a round rests on, as the first stage reported them

    class Watched(RayWorkers):
        def __enter__(self) -> Self:
            fed.append([])
            return super().__enter__()

        def feed(self, passes: Sequence[Pass]) -> None:
            fed[-1] += [one.epoch for one in passes]
            super().feed(passes)

    class Parked(PipelineRunner):
        """Its workers end after every turn, as they do on GPUs."""

        _ends_between_turns = True

    def watched(reports: list[PassReport]) -> StepTimes:
        if reports[0].stage == 0:
            measured.append([report.epoch for report in reports])
        return joined(reports)

    monkeypatch.setattr("launch.bench.ours.RayWorkers", Watched)
    monkeypatch.setattr("launch.bench.ours.joined", watched)
    row = Parked("cff-1", "CFF", spec, warm=1)
    try:
        row.start()
        assert row.round(2).images == 2 * 64
    finally:
        row.close()
    assert fed == [[0], [0, 1]], "the start's workers and the round's"
    assert measured == [[1]]


def test_one_device_leaves_the_rows_that_need_one(tmp_path: Path, cluster: None, capsys: Any) -> None:
    flags = ["--devices", "1", "--rounds", "1", "--steps", "2", "--source", "memory"]
    flags += ["--only", "cff-serial-1", "cff-1", "ddp", "dataparallel"]
    assert main(["bench", *TINY, *flags, "--out", str(tmp_path / "out")]) == 0
    rows = {row["name"]: row for row in report_in(tmp_path / "out")["rows"]}
    assert "needs 2 devices" in rows["cff-1"]["trouble"]
    assert "needs 2 devices" in rows["ddp"]["trouble"]
    assert "GPU" in rows["dataparallel"]["trouble"]
    assert rows["cff-serial-1"]["images_per_second"] > 0
    assert "cff-1: needs 2 devices" in capsys.readouterr().out


@pytest.mark.pictures
@pytest.mark.alone
def test_a_whole_benchmark(tmp_path: Path, cluster: None, capsys: Any) -> None:
    out = tmp_path / "out"
    flags = ["--devices", "2", "--rounds", "1", "--steps", "3", "--only", "ddp", "cff-1"]
    flags += ["--source", "memory", "--to-accuracy", "100", "--max-epochs", "1"]
    assert main(["bench", *TINY, *flags, "--out", str(out)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    report = report_in(out)
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == ["ddp", "cff-1"]
    for row in rows.values():
        (taken,) = row["rounds"]
        assert taken["images"] == 3 * 64
        assert row["images_per_second"] == pytest.approx(taken["images"] / taken["seconds"])
        assert all(0 <= share <= 1 for device in row["devices"] for share in device["shares"].values())
        assert all(device["peak_bytes"] > 2**20 for device in row["devices"])
    assert len(rows["cff-1"]["devices"]) == 2
    # Images (64, 1, 8, 8) in patches of 2: 17 vectors with the class token, or 16, of 16 floats; labels and ids.
    assert rows["cff-1"]["bytes_per_step"] in {64 * tokens * 16 * 4 + 2 * 64 * 8 for tokens in (16, 17)}
    assert 0 < rows["cff-1"]["ideal"]["efficiency"] <= 1.0
    best = max(rows.values(), key=lambda row: row["images_per_second"])
    winner = report["conclusion"][0]
    assert winner.startswith((f"{best['title']} wins", f"Nobody wins clearly: {best['title']}"))
    assert f"{best['images_per_second']:,.0f} images/s" in winner
    assert winner in printed
    page = (out / "bench.md").read_text()
    assert winner in page
    for row in rows.values():
        assert f"| {row['name']} | {row['images_per_second']:,.0f} |" in page
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "bench.pdf").read_bytes().startswith(b"%PDF")
    assert [curve["method"] for curve in report["curves"]] == ["backprop", "cff-1"]
    assert all(len(curve["accuracies"]) == 1 for curve in report["curves"])
    assert "not reached in 1 epochs" in page
    assert report["settings"]["net"]["depth"] == 2
    assert report["machine"]["torch"] == torch.__version__.split("+")[0] or torch.__version__


@pytest.mark.slow
def test_any_net_and_method_is_measured_beside_backprop_on_its_stages(tmp_path: Path, cluster: None) -> None:
    """Convolutions with label embeddings in a pipeline of unequal stages."""
    out = tmp_path / "out"
    flags = ["--preset", "dcl-conv512", "--data", "digits", "--channels", "8", "8", "8", "--batch-size", "32"]
    flags += ["--partition", "1", "2", "--devices", "2", "--device", "cpu", "--source", "memory"]
    flags += ["--rounds", "1", "--steps", "3", "--only", "pipelined", "1f1b-8", "--out", str(out)]
    assert main(["bench", *flags]) == 0
    report = report_in(out)
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == ["1f1b-8", "pipelined"]
    assert all(row["images_per_second"] > 0 for row in rows.values()), rows
    stages = [device["name"] for device in rows["1f1b-8"]["devices"]]
    assert stages == ["stage 1 (layer 1)", "stage 2 (layers 2-3)"]
    assert [device["name"] for device in rows["pipelined"]["devices"]] == stages
    assert rows["pipelined"]["title"] == "dcl-conv512, pipelined, 2 stages"
    assert report["settings"]["method"]["kind"] == "dcl"


def report_in(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "bench.json").read_text())
    return values


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.exhaustive
def test_ctrl_c_reports_what_was_measured_and_leaves_no_process(tmp_path: Path) -> None:
    flags = ["--devices", "2", "--rounds", "1000", "--steps", "1", "--warm", "1", "--source", "memory"]
    flags += ["--only", "ddp", "cff-1", "--out", str(tmp_path / "out")]
    launched = launch(tmp_path, "bench", *TINY, *flags)
    launched.wait_for("round 1 of 1000")
    launched.stop(signal.SIGINT)
    assert launched.finish() == 130
    launched.assert_nothing_left()
    report = report_in(tmp_path / "out")
    assert report["stopped"]
    assert all(1 <= len(row["rounds"]) < 1000 for row in report["rows"])
    assert "Stopped by hand" in launched.text()


# ---------------------------------------------------------------------------------------------------------------------
# The ablation and memory


@pytest.mark.parametrize(
    "step", [step for step in ablation_steps.STEPS if step.plain is not None], ids=lambda step: step.name
)
def test_the_plain_loop_and_the_products_layers_learn_the_same(step: ablation_steps.AblationStep) -> None:
    """Otherwise the ablation would compare different mathematics."""
    assert step.plain is not None
    spec = spec_of(ROWS["cff-1"], tiny_settings(depth=2), Devices("cpu", 1), QUIET)
    spec = replace(spec, stages=partition(2, 1))
    cpu = torch.device("cpu")
    plain = PlainLoop(spec, step.plain, cpu)
    product = ablation_steps.ProductLoop(spec, cpu)
    augment = Augment(spec.augment, seed=0, device=cpu)
    dataset = build.open_folder(spec.settings, Path(spec.data_folder))
    for batch, _ in zip(dataset.batches("train", epoch=0, batch_size=64), range(3), strict=False):
        views = augment.views(batch.images, epoch=0, position=batch.position, num_views=1)
        mine, theirs = product.step(views, batch.labels, batch, 0), plain.step(views, batch.labels)
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_rung_takes_turns_in_a_process_of_its_own() -> None:
    spec = spec_of(ROWS["cff-serial-1"], tiny_settings(depth=2), Devices("cpu", 1), QUIET)
    step = ablation.AblationRunner(spec, ablation_steps.STEPS[0], warm=1)
    try:
        step.start()
        taken = step.round(2)
    finally:
        step.close()
    assert taken.images == 2 * 64
    assert taken.devices[0].peak_bytes > 2**20
    assert np.isfinite(taken.loss)


def test_the_ladder_climbs_from_rung_to_rung() -> None:
    speeds = (100, 150, 300)
    measured_steps = [measured(step.name, [speed]) for step, speed in zip(ablation_steps.STEPS, speeds, strict=False)]
    for entry in measured_steps:
        spec = spec_of(ROWS["cff-serial-1"], tiny_settings(depth=2), Devices("cpu", 1), QUIET)
        step = next(step for step in ablation_steps.STEPS if step.name == entry.name)
        entry.runner = ablation.AblationRunner(spec, step, warm=1)
        entry.runner.first_step = 7.0
    rows = ablation.ablation_rows(measured_steps, BATCH)
    assert [row.to_first for row in rows] == pytest.approx([1.0, 1.5, 3.0])
    assert [row.to_tuned for row in rows] == pytest.approx([2 / 3, 1.0, 2.0])
    assert [row.to_before for row in rows] == pytest.approx([1.0, 1.5, 2.0])
    assert rows[0].compile_seconds == pytest.approx(7.0 - BATCH / 100)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_stage_of_one_layer_needs_no_more_memory_in_a_deeper_net() -> None:
    settings = replace(tiny_settings(depth=2, batch_size=512), readout=replace(DEFAULT.readout, mode="online"))
    settings = replace(settings, net=VitSettings(dim=64, heads=2, depth=2))

    def peak(what: memory.What, depth: int) -> int:
        measured = memory.measure(memory._spec(settings, depth), what)
        assert measured.bytes is not None, measured.trouble
        return measured.bytes

    shallow, deep = peak("stage", 2), peak("stage", 8)
    assert deep < 1.15 * shallow
    assert peak("backprop", 8) > 2 * deep


def test_memory_refuses_what_it_cannot_vary(capsys: Any) -> None:
    assert main(["bench", "memory", *TINY, "--depths", "1"]) == 2
    assert "--depths 1" in capsys.readouterr().err


def test_checks_give_the_rows_in_their_order() -> None:
    assert check(BenchArguments(only=("cff-1", "ddp"))) == ("ddp", "cff-1")
    assert chosen((), THEIRS) == tuple(ROWS)
    with pytest.raises(UserError, match="no row is left"):
        chosen((), NAMES)


def test_a_stage_that_dies_names_the_batch_and_what_helps(cluster: None) -> None:
    settings = tiny_settings(depth=2)
    spec = turns_of(spec_of(ROWS["cff-1"], settings, Devices("cpu", 2), QUIET), "memory", warm=1, steps=1)

    class Dying(PipelineRunner):
        def start(self) -> None:
            raise StageFailedError("stage 1 (layer 1) died: Task was killed due to the node running low on memory.")

    entry = Entry(runner=Dying("cff-1", "CFF", spec, warm=1), source="memory")
    compete([entry], rounds=1, steps=1, say=lambda sentence: None)
    assert "The batch was 64 images" in (entry.trouble or "")
    assert "--precision bf16" in (entry.trouble or "")


def test_the_folder_of_a_run_is_the_folder_of_the_report(tmp_path: Path) -> None:
    """Symptom: `launch bench --run-dir X` wrote to runs/ all the same."""
    wanted = str(tmp_path / "report")
    assert output_folder(None, "bench", run_dir=wanted) == Path(wanted)
    assert output_folder(wanted, "bench", run_dir=wanted) == Path(wanted)
    with pytest.raises(UserError, match="both say where the report goes"):
        output_folder(str(tmp_path / "other"), "bench", run_dir=wanted)
