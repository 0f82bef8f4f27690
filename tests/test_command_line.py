"""The command line as a person meets it before anything runs: help, mistakes in names, what would run."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tyro
from rich.console import Console

from launch.cli import COMMANDS, main
from launch.command_line.flags import flags_of
from launch.command_line.parse import FIRST, MARKERS, REGISTRY, RunArguments, peek, preset_and_default
from launch.output.console import counted, make_console, say
from launch.output.display import print_summary
from launch.output.layer_table import LayerRow, accuracy_sentence, print_layers
from launch.output.tables import print_table
from launch.presets import PRESETS
from pipeline.config import settings as settings_module
from pipeline.errors import UserError
from pipeline.nets import NETS
from tests.support_cli import in_fresh_python

_NAMES = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
_ROOT = Path(__file__).parent.parent


def printed_help(*arguments: str, capsys: Any) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 0
    text: str = capsys.readouterr().out
    return text


@pytest.mark.parametrize("preset", PRESETS)
def test_every_flag_of_a_preset_is_in_its_whole_help_and_no_other(preset: str, capsys: Any) -> None:
    """tyro reads the command line, our own list is shown: they name the same flags."""
    defaults = RunArguments(run=PRESETS[preset].settings)
    ours = {name for flag in flags_of(defaults) for name in _NAMES.findall(flag.usage)}
    with pytest.raises(SystemExit):
        tyro.cli(RunArguments, args=["--help"], default=defaults, config=MARKERS, registry=REGISTRY)
    theirs = set(_NAMES.findall(capsys.readouterr().out))
    assert theirs - {"--help"} == ours
    assert ours <= set(_NAMES.findall(printed_help(preset, "--help-all", capsys=capsys)))


def test_help_shows_what_matters_first_and_says_how_to_see_the_rest(capsys: Any) -> None:
    short = printed_help("cff-vit", "--help", capsys=capsys)
    assert all(f"--{name}" in short for name in FIRST)
    assert "--margin-schedule" not in short
    assert "--help-all shows" in short
    assert len(short.splitlines()) < 55
    whole = printed_help("cff-vit", "--help-all", capsys=capsys)
    assert "--margin-schedule" in whole
    for internal in ("{None}", "|STR", "data options", "MISSING"):
        assert internal not in whole


def test_help_tells_exit_statuses(capsys: Any) -> None:
    assert "130 stopped by Ctrl-C, SIGTERM or SIGHUP" in " ".join(printed_help("eval", "-h", capsys=capsys).split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: Any) -> None:
    if command == "completion":
        return
    assert printed_help(command, *(["cff-vit"] if command == "plan" else []), "--help", capsys=capsys)
    if command != "plan":
        assert f"usage: launch {command}" in printed_help("help", command, capsys=capsys)


@pytest.mark.parametrize("columns", ["40", "50", "80"])
def test_help_keeps_to_the_terminal(columns: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for arguments in (["dcl-vgg8b", "--help-all"], ["export", "--help"]):
        for line in printed_help(*arguments, capsys=capsys).splitlines():
            assert len(line) <= int(columns) or line.startswith("  "), line


def test_help_without_a_name_lists_everything(capsys: Any) -> None:
    for arguments in ([], ["help"], ["--help"]):
        assert main(arguments) == 0
        printed = capsys.readouterr().out
        assert all(name in printed for name in [*PRESETS, *COMMANDS])


def test_version_needs_no_torch() -> None:
    program = "import sys; from launch.cli import main; main(['--version']); assert 'torch' not in sys.modules"
    said = in_fresh_python(program)
    assert said.startswith("localpipe ")
    assert "torch 2." in said


@pytest.mark.parametrize(
    ("typed", "suggested"), [("cff-vitt", "cff-vit"), ("cff-vit-cifar1", "cff-vit-cifar10"), ("evall", "eval")]
)
def test_a_misspelt_name_is_answered_by_the_nearest_alone(typed: str, suggested: str, capsys: Any) -> None:
    assert main([typed]) == 2
    said = capsys.readouterr().err
    assert f"Did you mean {suggested!r}?" in said
    assert len(said) < 100


def test_a_name_like_nothing_is_pointed_to_the_list(capsys: Any) -> None:
    assert main(["zzzz"]) == 2
    assert "`launch list` shows what there is" in capsys.readouterr().err


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_without_flags_is_its_settings(preset: str) -> None:
    assert preset_and_default(preset, [])[1] == PRESETS[preset].settings


@pytest.mark.parametrize(
    ("arguments", "value"),
    [([], None), (["--data"], None), (["--data", "mnist"], "mnist"), (["--a", "1", "--data=x", "--b"], "x")],
)
def test_the_value_of_a_flag_is_found_wherever_it_stands(arguments: list[str], value: str | None) -> None:
    assert peek(arguments, "--data") == value


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The configuration of a run of dcl-fc on digits."""
    default = PRESETS["dcl-fc"].settings
    settings = replace(default, data=replace(default.data, data="digits"))
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"settings": settings_module.to_dict(settings)}))
    return file


def test_a_configuration_of_another_preset_is_refused(saved: Path, capsys: Any) -> None:
    assert main(["cff-vit", "--config", str(saved)]) == 2
    said = capsys.readouterr().err
    assert "is a run of dcl-fc, not of cff-vit" in said
    assert f"launch dcl-fc --config {saved}" in said


@pytest.mark.parametrize("name", ["dcl-fc", None])
def test_a_configuration_repeats_its_run(saved: Path, name: str | None, tmp_path: Path, capsys: Any) -> None:
    """With its preset's name or without any, and with no flag besides."""
    given = [*([name] if name else []), "--config", str(saved)]
    assert main([*given, "--dry-run"]) == 0
    assert "dcl-fc: FC[3072 2], K = 48 on digits" in capsys.readouterr().out
    with pytest.raises(UserError, match="needs a file"):
        preset_and_default("dcl-fc", ["--config"])


def test_a_preset_runs_on_a_net_of_another_kind(saved: Path, capsys: Any) -> None:
    sizes = ["--channels", "8", "16", "--first-padding", "1"]
    for given in (["cff-vit"], ["--config", str(saved)]):
        assert main([*given, "--net", "conv", *sizes, "--dry-run"]) == 0
        assert "conv[8 16] on digits" in capsys.readouterr().out
    assert preset_and_default("dcl-fc", ["--net", "mlp"])[1] == PRESETS["dcl-fc"].settings  # which it has already
    assert main(["cff-vit", "--net", "cnn"]) == 2
    assert f"--net cnn: there are {', '.join(sorted(net.kind for net in NETS))}." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["cff-vit", "--net", "mlp", "--help-all"])
    printed = capsys.readouterr().out
    assert "--width" in printed and "--heads" not in printed


def test_a_dry_run_starts_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("workers.cluster.StartingCluster.__enter__", lambda self: pytest.fail("Ray was started"))
    assert main(["cff-vit", "--stages", "3", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "3 stages on cpu (ray), layers 1 | 2 | 3,4" in said
    assert "20 steps an epoch, 1,200 in all, then 20 epochs of readouts" in said
    assert "Nothing was started" in said
    assert not list(tmp_path.iterdir())
    assert main(["cff-vit", "--stages", "9", "--dry-run"]) == 2


def test_a_quiet_run_prints_its_result_alone(tmp_path: Path, capsys: Any) -> None:
    small = ["--dim", "16", "--heads", "2", "--executor", "serial", "--max-steps", "2"]
    assert main(["cff-vit", *small, "-q", "--run-dir", str(tmp_path / "quiet")]) == 0
    said = capsys.readouterr().out
    assert "finished: ViT[16 2 4] on digits" in said
    assert "opening" not in said
    assert "readouts, epoch" not in said
    assert main(["cff-vit", *small, "-v", "--run-dir", str(tmp_path / "verbose")]) == 0
    said = capsys.readouterr().out
    assert "first training step" in said
    assert "cut short after 2 steps" in said
    summary = json.loads((tmp_path / "verbose" / "summary.json").read_text())
    assert 0 < summary["seconds"]["start_up"] < summary["seconds"]["total"]


def test_steps_are_capped_by_a_variable_and_by_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("LOCALPIPE_MAX_STEPS", "3")
    small = ["--dim", "16", "--heads", "2", "--executor", "serial", "--run-dir", str(tmp_path / "run")]
    assert main(["cff-vit", *small]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {(line["kind"], line["epoch"]) for line in lines} == {
        ("train", 1),
        ("validate", 1),
        ("readout", 2),
        ("test", 1),
    }
    config = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert (config["train"]["max_steps"], config["train"]["epochs"], config["train"]["batch_size"]) == (3, 1, 64)
    monkeypatch.setenv("LOCALPIPE_MAX_STEPS", "many")
    assert main(["cff-vit", "--dry-run"]) == 2
    assert "LOCALPIPE_MAX_STEPS=many" in capsys.readouterr().err


def test_a_learning_rate_below_zero_quotes_no_paper(capsys: Any) -> None:
    assert main(["cff-vit", "--lr", "-1"]) == 2
    said = capsys.readouterr().err
    assert "--lr -1.0: must be above 0" in said
    assert "paper" not in said


@pytest.mark.slow
def test_completion_completes_in_a_real_shell(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = subprocess.run(
        [sys.executable, "-m", "launch", "completion", "bash"],
        cwd=_ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    (tmp_path / "completion").write_text(script)

    def complete(*words: str) -> list[str]:
        program = (
            f"source {tmp_path / 'completion'}; COMP_WORDS=({' '.join(repr(word) for word in words)}); "
            f"COMP_CWORD={len(words) - 1}; $(complete -p launch | sed 's/.*-F \\([^ ]*\\) .*/\\1/') launch; "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        out = subprocess.run(["bash", "-c", program], env=environment, check=True, capture_output=True, text=True)
        return [word.strip() for word in out.stdout.split("\n")]

    assert "cff-vit-cifar10" in complete("launch", "cff-v")
    assert "--margin-schedule" in complete("launch", "cff-vit", "--margin-s")
    assert set(COMMANDS) <= set(complete("launch", ""))
    assert "--once" in complete("launch", "top", "--on")


def test_a_shell_that_is_not_known_is_refused(capsys: Any) -> None:
    assert main(["completion", "dos"]) == 2
    assert "bash or zsh" in capsys.readouterr().err


ROWS = [
    LayerRow(layer=1, readout=None, alone=0.0975, top_k=None, fisher=1170191.7, loss=2.3456),
    LayerRow(layer=2, readout=0.2535, alone=0.5822, top_k=None, fisher=12.0, loss=1.2345),
]


def rendered(width: int, rows: list[LayerRow] = ROWS) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_layers(console, rows, top_k=1, loss="validation loss")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_readout_and_layer_alone_are_two_columns() -> None:
    """Symptom: a layer without readout had its own prediction under "test accuracy"."""
    lines = rendered(100).splitlines()
    assert "by readout" in lines[0]
    assert "layer alone" in lines[0]
    assert [cell.strip() for cell in lines[2].split("│")[1:3]] == ["–", "9.75%"]
    assert accuracy_sentence(ROWS) == "test accuracy 25.35% by the readout, 58.22% by layer 2 alone"
    assert accuracy_sentence(ROWS[:1]) == "test accuracy 9.75%"


@pytest.mark.parametrize("width", range(20, 140))
def test_no_width_cuts_a_figure(width: int) -> None:
    text = rendered(width)
    for figure in ("9.75%", "25.35%", "58.22%", "1,170,191.7", "2.346", "1.234"):
        assert figure in text
    assert "…" not in text


@pytest.mark.parametrize("width", range(1, 60))
def test_a_table_takes_room_from_headings_alone(width: int) -> None:
    """Symptom: on 80 columns the longest heading's column was narrowed until its figures were cut."""
    console = Console(file=io.StringIO(), width=width)
    print_table(console, ["layer", "a heading of several words", "update"], [["1", "12.75", "1,234.5"]] * 2)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    if width >= 14:
        assert text.count("12.75") == text.count("1,234.5") == 2
        assert "several" in text
    widest = max(len(line.rstrip()) for line in text.splitlines())
    assert widest <= width


def test_a_table_without_rows_is_nothing() -> None:
    console = Console(file=io.StringIO(), width=40)
    print_table(console, ["a"], [])
    assert isinstance(console.file, io.StringIO)
    assert not console.file.getvalue()


def test_no_color_leaves_no_style(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for variable, styled in (({}, True), ({"NO_COLOR": "1"}, False)):
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
        for name, value in variable.items():
            monkeypatch.setenv(name, value)
        terminal = Terminal()
        say(make_console(terminal), "test accuracy", style="bold")
        assert ("\x1b[" in terminal.getvalue()) == styled


def test_a_sentence_breaks_between_words_on_a_terminal_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "extraordinarily long sentences of several words"
    terminal = Console(file=io.StringIO(), width=20, force_terminal=True, color_system=None)
    say(terminal, words)
    piped = Console(file=io.StringIO(), width=20)
    say(piped, words)
    assert isinstance(terminal.file, io.StringIO)
    assert isinstance(piped.file, io.StringIO)
    assert [line.rstrip() for line in terminal.file.getvalue().splitlines()] == [
        "extraordinarily long",
        "sentences of several",
        "words",
    ]
    assert piped.file.getvalue() == f"{words}\n"


@pytest.mark.parametrize(("count", "said"), [(0, "0 epochs"), (1, "1 epoch"), (1797, "1,797 epochs")])
def test_counts_agree_with_their_nouns(count: int, said: str) -> None:
    assert counted(count, "epoch") == said


def test_the_end_of_a_run_of_one_epoch_says_one_epoch() -> None:
    console = Console(file=io.StringIO(), width=200)
    layer = dict.fromkeys(("test_accuracy", "test_direct_accuracy", "test_top_k", "test_fisher", "validation_loss"))
    summary: dict[str, Any] = {
        "status": "interrupted",
        "net": "ViT[64 4 4]",
        "data": {"name": "digits", "train": 1294, "validate": 144, "test": 359},
        "epochs_finished": 1,
        "best_epoch": 1,
        "best_by": "lowest validation loss of layer 4",
        "layers": [{"layer": 1, **layer}],
        "top_k": 1,
        "speed": None,
        "stages": 1,
        "restarts": 2,
        "states": {"restarting": 13.24},
    }
    print_summary(console, summary, "runs/x")
    assert isinstance(console.file, io.StringIO)
    assert "1 epoch, kept epoch 1 (lowest validation loss of layer 4)" in console.file.getvalue()
    assert "went on after 2 failures, 13.2 s until it trained again" in console.file.getvalue()


def test_every_file_of_a_run_folder_has_the_umasks_mode(tmp_path: Path, capsys: Any) -> None:
    before = os.umask(0o027)
    try:
        small = ["--dim", "16", "--heads", "2", "--executor", "serial", "--max-steps", "2"]
        assert main(["cff-vit", *small, "--run-dir", str(tmp_path / "run")]) == 0
    finally:
        os.umask(before)
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in (tmp_path / "run").rglob("*") if file.is_file()}
    assert set(modes.values()) == {"0o640"}, modes
