"""`launch reproduce`: the runs of a paper's table, each a process of its own, and their figures beside the paper's."""

from __future__ import annotations

import csv
import json
import re
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch.cli import main
from launch.output.saved_runs import SavedRun
from launch.presets.papers import CFF
from launch.reproduce.grid import replaced, wanted
from launch.reproduce.measures import MEASURES
from launch.reproduce.picture import draw
from launch.reproduce.report import as_csv, markdown
from launch.reproduce.results import Row, rows_of
from launch.reproduce.table import Entry, Table
from launch.reproduce.tables import TABLES
from tests.support_cli import launch

_SMALL = (
    "--data",
    "digits",
    "--dim",
    "16",
    "--heads",
    "2",
    "--depth",
    "1",
    "--batch-size",
    "64",
    "--executor",
    "serial",
)
_SHORT = (*_SMALL, "--max-steps", "4")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts the tests may have a narrow terminal."""
    monkeypatch.setenv("COLUMNS", "160")


# ---------------------------------------------------------------------------------------------------------------------
# What a user types


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """Two rows of Table 4, stopped in the second one's run and gone on with: the folder, and what both printed."""
    patch = pytest.MonkeyPatch()
    patch.setenv("COLUMNS", "160")
    home = tmp_path_factory.mktemp("tables")
    folder = home / "the-table"
    table = ("reproduce", "cff-table4", "--only", "50", "--seeds", "1", "--at-once", "1", "--run-dir", str(folder))
    begun = launch(home, *table, *_SHORT, shared=True)
    begun.wait_for("50,0,CFF+M,seed=0: begins")
    begun.stop(signal.SIGINT)
    assert begun.finish(120) == 130, begun.text()
    begun.assert_nothing_left()
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    again = launch(elsewhere, "resume", str(folder), shared=True)
    assert again.finish(240) == 0, again.text()
    patch.undo()
    return folder, begun.text(), again.text()


@pytest.mark.slow
def test_a_table_that_was_stopped_goes_on_and_runs_nothing_twice(reproduced: tuple[Path, str, str]) -> None:
    folder, begun, again = reproduced
    assert "50,0,BP,seed=0: finished" in begun and f"go on with: launch resume {folder}" in begun
    assert re.search(r"50 +│ 0 +│ CFF\+M .*0 of 1 \(1 not begun\)", begun)
    assert "1 run of before: finished, and not run again" in again and "50,0,BP,seed=0: begins" not in again
    assert "50,0,CFF+M,seed=0: finished" in again


@pytest.mark.slow
def test_the_table_is_that_of_the_runs_and_says_what_it_lacks_of_the_paper_s(reproduced: tuple[Path, str, str]) -> None:
    folder, _, again = reproduced
    summaries = {
        name: json.loads((folder / f"50,0,{name},seed=0" / "summary.json").read_text()) for name in ("BP", "CFF+M")
    }
    assert all(one["data"]["train_fraction"] == 0.5 for one in summaries.values())
    accuracies = {name: f"{100 * one['test_accuracy']:.2f}" for name, one in summaries.items()}
    said = f"Every run was given {' '.join(_SHORT)}, which is not the paper's budget."
    written = (folder / "table.md").read_text()
    for name, accuracy in accuracies.items():
        assert re.search(rf"50 +│ 0 +│ {re.escape(name)} +│ +{accuracy} │ +– │ +– │ 1", again)
        assert f"| 50 | 0 | {name} | {accuracy} | – | – | 1 |" in written
    assert said in again and said in written
    assert "On digits, though rows keep their names in the table. The paper's figures are left out." in again
    with (folder / "table.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert float(rows["BP"]["accuracy_mean"]) == pytest.approx(100 * summaries["BP"]["test_accuracy"])
    kept = json.loads((folder / "reproduce.json").read_text())
    assert kept["commands"]["50,0,BP,seed=0"].startswith("launch cff-vit-cifar10 --randaugment-ops 3 --train-fraction")
    assert kept["rows"][1]["accuracy"]["values"] == [pytest.approx(100 * summaries["CFF+M"]["test_accuracy"])]


@pytest.mark.slow
def test_commands_on_runs_take_a_table_as_a_folder_of_them(
    reproduced: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, _ = reproduced
    assert main(["runs", str(folder.parent)]) == 0
    assert "the-table/50,0,BP,seed=0" in capsys.readouterr().out
    assert main(["cff-vit", "--run-dir", str(folder)]) == 2
    assert "is a folder of `launch reproduce`" in capsys.readouterr().err
    assert main(["reproduce", "cff-table4", "--only", "50", "--run-dir", str(folder)]) == 2
    assert "holds cff-table4 50 --data digits" in capsys.readouterr().err
    assert main(["resume", str(folder), "--epochs", "3"]) == 2
    assert "goes on as it was asked for. Leave out --epochs." in capsys.readouterr().err


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_run_that_fails_is_said_in_its_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "table"
    flags = ("--only", "50", "--seeds", "1", "--lr", "1e30", "--checkpoint-every", "off")
    assert main(["reproduce", "cff-table4", *flags, *_SHORT, "--run-dir", str(folder)]) == 1
    printed = capsys.readouterr().out
    assert (
        re.search(r"CFF\+M +│ +– │ +– │ +– │ 0 of 1 \(1 failed\)", printed) and "go on with: launch resume" in printed
    )


def test_without_a_table_it_lists_them_with_the_paper_s_figures_and_the_work(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments in (["reproduce"], ["reproduce", "--list"]):
        assert main(arguments) == 0
        printed = capsys.readouterr().out
        assert all(name in printed for name in TABLES)
        assert re.search(r"cff-table4 .*69\.19 to 86\.95 +│ 10 +│ 6,000", printed)


def test_a_dry_run_prints_the_grid_the_commands_and_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "table"
    flags = ("--seeds", "2", "--seed", "7", "--only", "cifar-10 ", "--train-fraction", "0.4", "--epochs", "3")
    assert main(["reproduce", "cff-table5", *_SMALL, *flags, "--run-dir", str(folder), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "--randaugment-ops 3 --pooling token --data digits" in printed and "--seed 8 --run-dir" in printed
    assert "4 runs of 12 epochs, 6,216 training images in all" in printed  # 0.4 × 1,294 images, 3 times in each
    assert not folder.exists()


def test_a_dry_run_shows_rows_whose_data_are_not_here_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "cff-table5", "--seeds", "1", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"ViT\[192 6 6\] +│ CIFAR-100 +│ pooling .*– │ +84\.28 │ .*cifar100 is not prepared", printed)
    assert "4 more runs when their data are here: `launch prepare cifar10`, `launch prepare cifar100`." in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cff-tabel4"], "unknown table 'cff-tabel4'. Did you mean 'cff-table4'?"),
        (["xyz"], "`launch reproduce --list` shows what there is."),
        (["--epochs", "3"], "name a table first."),
        (["cff-table4"], "`launch prepare cifar10`. Or leave their rows out with --skip-missing"),
        (["cff-table4", "--skip-missing"], "none of its data sets is prepared here (cifar10)"),
        (["cff-table4", "--only", "xyz"], "--only xyz: cff-table4 has no such row. It has: 0 0 BP; 0 0 CFF+M;"),
        (["cff-table4", "--seeds", "0"], "--seeds 0: must be a whole number from 1"),
        (["cff-table4", "--seed", "-1"], "--seed -1: a seed is a whole number from 0."),
        (["cff-table4", "--at-once", "0"], "--at-once 0: must be a whole number from 1"),
        (["cff-table4", "--config", "x"], "--config: the table says what its runs are. Leave it out."),
        (["cff-table4", "--sweep", "lr=1"], "--sweep: the table says what its runs are."),
        (["cff-table4", *_SMALL, "--train-fraction", "2"], "makes one run of two"),
        (["cff-table4", *_SMALL, "--only", "50", "--train-fraction", "2"], "--train-fraction 2.0: give the share"),
        (["cff-table4", *_SMALL, "--only", "50", "--label-noise", "1"], "--label-noise 1.0: give the share"),
        (["cff-fig4", *_SMALL, "--margin-first", "0.3"], "makes one run of two, of `launch cff-vit-cifar10 --margin-"),
        (["cff-table4", *_SMALL, "--lrr", "1"], "Unrecognized options: --lrr"),
    ],
)
def test_a_mistake_is_one_message_before_anything_starts(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "table"
    try:
        status: Any = main(["reproduce", *arguments, "--run-dir", str(folder)])
    except SystemExit as end:  # tyro's own way to say that a flag is not known
        status = end.code
    printed = capsys.readouterr()
    assert status == 2 and said in " ".join(printed.err.split()), printed
    assert not printed.out and not folder.exists()


def test_a_table_that_has_changed_since_does_not_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {"table": "cff-table4", "flags": [*_SMALL], "plugins": [], "only": ["50"], "seeds": [0]}
    commands = {"50,0,BP,seed=0": "launch cff-vit-cifar10 --lr 1"}
    (tmp_path / "reproduce.json").write_text(
        json.dumps({**kept, "skip_missing": False, "format": 1, "commands": commands})
    )
    assert main(["resume", str(tmp_path)]) == 2
    assert "50,0,BP,seed=0 was begun as `launch cff-vit-cifar10 --lr 1`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seeds": []}, "has no seeds"),
        ({"table": "cff-table9"}, "unknown table 'cff-table9'"),
        ({"only": ["xyz"]}, "has no such row"),
        ({"flags": 3}, "reproduce.json: cannot be read"),
        ({"format": 9}, "format 9; this version reads 1."),
    ],
)
def test_a_damaged_folder_is_a_sentence(
    change: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {"table": "cff-table4", "flags": [], "plugins": [], "only": [], "seeds": [0], "skip_missing": False}
    (tmp_path / "reproduce.json").write_text(json.dumps({**whole, "format": 1, **change}))
    assert main(["resume", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# The table of results that were made by hand

_HAND = Table(
    title="a table",
    source=CFF,
    place="Table 0",
    headings=("series", "m"),
    measures=("accuracy", "gain", "seconds"),
    entries=(
        Entry(labels=("a", "1"), run="cff-vit", paper={"accuracy": 80.0, "seconds": 9}),
        Entry(labels=("a", "2"), run="cff-vit --views 1", against="cff-vit", paper={"gain": -1.5}),
        Entry(labels=("b", "1"), run="cff-vit-cifar100"),
    ),
    notes=("A note.",),
    picture=True,
)


def leave_run(folder: Path, accuracy: float, *, status: str = "finished") -> None:
    """A run folder with 1,000 training images, 250 of them a second."""
    folder.mkdir()
    data = {"folder": "x", "content_hash": "y"}
    (folder / "config.json").write_text(json.dumps({"settings": {}, "data": data}))
    summary = {
        "status": status,
        "test_accuracy": accuracy,
        "test_top_k": accuracy,
        "data": {"train": 1000},
        "speed": {"images_per_second": 250.0},
    }
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def by_hand(tmp_path: Path) -> list[Row]:
    """Two seeds of which one run failed, and a data set that is not there."""
    runs = wanted(_HAND.entries, [], first_seed=0)
    for seed, accuracy in ((0, 0.78), (1, 0.80)):
        leave_run(tmp_path / f"a,1,seed={seed}", accuracy)
    leave_run(tmp_path / "a,2,seed=0", 0.77)
    leave_run(tmp_path / "a,2,seed=1", 0.10, status="failed")
    return rows_of(_HAND, _HAND.entries, runs, [0, 1], tmp_path)


def test_mean_and_deviation_over_seeds_stand_beside_the_paper_s_figure(by_hand: list[Row]) -> None:
    accuracy = by_hand[0].figures["accuracy"]
    assert accuracy.mean == pytest.approx(79.0) and accuracy.difference == pytest.approx(-1.0)
    assert accuracy.deviation == pytest.approx(statistics.stdev([78, 80]))
    headings = "| series | m | accuracy, % | paper | difference | accuracy, points more | paper | difference | s/epoch "
    assert markdown("T", _HAND, by_hand, ["Said."]).splitlines() == [
        "# T",
        "",
        f"{headings}| paper | difference | runs |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
        "| a | 1 | 79.00 ± 1.41 | 80.00 | -1.00 | – | – | – | 4.0 ± 0.0 | 9.0 | -5.0 | 2 |",
        "| a | 2 | 77.00 | – | – | -1.00 | -1.50 | +0.50 | 4.0 | – | – | 1 of 2 (1 failed) |",
        "| b | 1 | – | – | – | – | – | – | – | – | – | cifar100 is not prepared |",
        "",
        "Said.  ",
    ]


def test_csv_has_every_digit_and_nothing_where_there_is_none(by_hand: list[Row]) -> None:
    first, second, third = csv.DictReader(as_csv(_HAND, by_hand).splitlines())
    assert float(first["accuracy_deviation"]) == pytest.approx(2**0.5) and first["seeds"] == "2"
    assert float(second["gain_difference"]) == pytest.approx(0.5) and second["accuracy_paper"] == ""
    assert third["runs"] == "cifar100 is not prepared" and third["accuracy_mean"] == ""


def test_a_layer_s_accuracy_is_its_readout_s_or_its_own_and_a_net_of_one_piece_has_none(tmp_path: Path) -> None:
    layers = [
        {"test_accuracy": 0.5, "test_direct_accuracy": 0.4},
        {"test_accuracy": None, "test_direct_accuracy": 0.25},
    ]
    run = SavedRun(tmp_path, {}, {"method": {"kind": "cfl"}, "layers": layers}, goes_on=False, now=None)
    assert [MEASURES[f"layer-{layer}"].read(run, None) for layer in (1, 2, 3)] == [50.0, 25.0, None]
    assert MEASURES["layer-accuracy"].read(run, 2) == 25.0
    whole = SavedRun(tmp_path, {}, {"method": {"kind": "baseline"}, "layers": layers[:1]}, goes_on=False, now=None)
    assert MEASURES["layer-1"].read(whole, None) is None


def test_a_row_on_other_data_has_no_figure_of_the_paper(tmp_path: Path) -> None:
    flags = ["--data", "mnist"]
    rows = rows_of(_HAND, _HAND.entries[:1], wanted(_HAND.entries[:1], flags, first_seed=0), [0], tmp_path)
    assert rows[0].figures["accuracy"].paper is None


def test_the_picture_has_a_line_for_each_series_and_the_paper_s_figures(by_hand: list[Row]) -> None:
    (axes,) = draw("T", _HAND, by_hand[:2]).axes
    measured = next(bars for bars in axes.containers if bars.get_label() == "a")
    means = measured.lines[0]  # type: ignore[attr-defined]  # of an ErrorbarContainer
    assert means.get_xdata().tolist() == [1.0, 2.0] and means.get_ydata().tolist() == pytest.approx([79.0, 77.0])
    stars = [np.asarray(line.get_ydata()).tolist() for line in axes.lines if line.get_marker() == "*"]
    assert stars == [[80.0], []] and axes.lines[-1].get_label() == "in the paper"


def test_flags_of_all_runs_take_the_place_of_a_row_s_own() -> None:
    words = ["cfl-fc", "--data", "mnist", "--channels", "8", "16", "--no-readout-norm", "--epochs=3"]
    assert replaced(words, ["--epochs", "5", "--readout_norm"]) == [
        *("cfl-fc", "--data", "mnist", "--channels", "8", "16")
    ]
    assert replaced(words, []) == words


# ---------------------------------------------------------------------------------------------------------------------
# The tables that there are


_EVERY_DAY = {"cff-table4", "cff-fig5", "cfl-table6", "dcl-table8"}
"""Tables whose rows are read in `make test`; `make test-all` reads all."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in _EVERY_DAY else pytest.mark.exhaustive) for name in TABLES]
)
def test_a_table_s_rows_can_be_read_and_each_is_a_run_of_its_own(name: str) -> None:
    table = TABLES[name]
    runs = wanted(table.entries, [], first_seed=0)  # refuses flags that there are not, and one run under two names
    assert len({run.name for run in runs.values()}) == len(runs)
    assert len({entry.labels for entry in table.entries}) == len(table.entries)
    for entry in table.entries:
        assert len(entry.labels) == len(table.headings)
        assert set(entry.paper) <= set(table.measures)
        assert (entry.against is not None) == ("gain" in entry.paper)


def figure(name: str, measure: str, *labels: str) -> float:
    (entry,) = (entry for entry in TABLES[name].entries if entry.labels == labels)
    return entry.paper[measure]


@pytest.mark.parametrize(
    ("found", "wanted_figure"),
    [
        (lambda: figure("cff-table1", "accuracy", "MNIST", "MLP[500 3]", "SymBa"), 97.82),
        (lambda: figure("cff-table1", "accuracy", "Tiny ImageNet", "ViT[240 6 7]", "CFF"), 72.43),
        (lambda: figure("cff-table2", "accuracy", "CIFAR-10", "ViT[128 4 5]", "FF", "yes"), 65.33),
        (lambda: figure("cff-table3", "accuracy", "crop only", "CIFAR-100", "ViT[240 6 7]", "BP"), 77.75),
        (lambda: figure("cff-table3", "accuracy", "crop + RandAugment", "CIFAR-10", "ViT[192 6 6]", "CFF+M"), 85.17),
        (lambda: figure("cff-table4", "accuracy", "80", "0", "CFF+M"), 73.26),
        (lambda: figure("cff-table5", "accuracy", "ViT[192 6 6]", "CIFAR-100", "token"), 79.00),
        (lambda: figure("cff-table6", "gain", "CIFAR-100", "ViT[240 6 7]", "crop only", "one forward"), -1.08),
        (lambda: figure("cfl-table1", "error", "CIFAR-100", "conv256", "CFL total-D without f^L"), 61.65),
        (lambda: figure("cfl-table1", "error", "MNIST", "FC", "CFL total-B"), 1.69),
        (lambda: figure("dcl-table3", "error", "CIFAR-100", "DC-FL-O"), 34.58),
    ],
)
def test_figures_are_the_paper_s(found: Callable[[], float], wanted_figure: float) -> None:
    assert found() == wanted_figure
