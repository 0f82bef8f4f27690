"""`launch doctor`: what it says of a machine; the report that it leaves, its steps, its format, what is not in it."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import pytest
import torch

from launch.cli import main
from launch.doctor.checks import Finding, check
from launch.doctor.command import chosen, line
from launch.doctor.costs import COLUMNS, rows_of
from launch.doctor.figures import Figures, Table, markdown_table, read
from launch.doctor.learning import LearningClock, Point, reached, sentence
from launch.doctor.machine import Machine, TorchGpu, supported
from launch.doctor.made_up import MadeUpImages
from launch.doctor.nvidia import parse_gpus, parse_links
from launch.doctor.redaction import Redaction, redaction_here
from launch.doctor.report import Report, StepResult
from launch.doctor.runner import BY_HAND, Ended, environment, last_words, run_all, run_step
from launch.doctor.steps import LEAST, Step, allowance, steps_for, why_not
from launch.doctor.trace import summed
from launch.doctor.workloads import WORKLOADS, Learning, spec_of
from pipeline.errors import RunError, UserError
from pipeline.kind import Kind
from pipeline.telemetry.reports import LayerReport, PassReport
from tests.support_cli import launch

GIB = 2**30

FIT = Machine(
    system="Linux x86_64",
    cpu="a processor",
    versions={"python": "3.12.4", "localpipe": "0.1.0", "torch": "2.13.0+cu130", "ray": "2.60.0"},
    cuda="13.0",
    nccl="2.28.9",
    driver_gpus=tuple(parse_gpus("0, NVIDIA H100, 580.65.06, 81559, 4\n1, NVIDIA H100, 580.65.06, 81559, 4")),
    torch_gpus=(TorchGpu(name="NVIDIA H100", memory=80 * GIB, capability=(9, 0)),) * 2,
    topology=None,
    c_compiler="/usr/bin/gcc",
    cxx_compiler="/usr/bin/g++",
    python_headers=True,
    cores=16,
    load=0.5,
    memory=128 * GIB,
    shared_memory=8 * GIB,
    open_files=65536,
    loopback=None,
    prepared=("digits", "cifar10"),
    data_free=100 * GIB,
    runs_free=100 * GIB,
    variables={},
)
NO_GPU = replace(FIT, cuda=None, nccl=None, driver_gpus=(), torch_gpus=())

# nvidia-smi topo -m of a machine with two linked pairs, and of one with two GPUs and a network card.
TOPOLOGY = """\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tCPU Affinity\tNUMA Affinity\x1b[0m
GPU0\t X \tNV4\tSYS\tSYS\t0-15\t0
GPU1\tNV4\t X \tSYS\tSYS\t0-15\t0
GPU2\tSYS\tSYS\t X \tNV4\t16-31\t1
GPU3\tSYS\tSYS\tNV4\t X \t16-31\t1

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NV#  = Connection traversing a bonded set of # NVLinks
"""
WITH_CARD = """        GPU0    GPU1    NIC0    CPU Affinity    NUMA Affinity   GPU NUMA ID
GPU0     X      PHB     SYS     0-31    0               N/A
GPU1    PHB      X      SYS     0-31    0               N/A
NIC0    SYS     SYS      X

Legend:

  X    = Self
"""


# ---------------------------------------------------------------------------------------------------------------------
# The machine


def test_gpus_are_read_from_what_nvidia_smi_prints() -> None:
    text = "0, NVIDIA A100-SXM4-40GB, 535.104.05, 40960, 3\n1, Tesla T4, 535.104.05, [N/A], [N/A]\n"
    first, second = parse_gpus(text)
    assert (first.index, first.name, first.driver, first.memory, first.used) == (
        0,
        "NVIDIA A100-SXM4-40GB",
        "535.104.05",
        40960,
        3,
    )
    assert (second.name, second.memory, second.used) == ("Tesla T4", None, None)
    assert parse_gpus("No devices were found\n") == []
    assert parse_gpus("") == []


@pytest.mark.parametrize(
    ("text", "links"),
    [
        (
            TOPOLOGY,
            {(0, 1): "NV4", (0, 2): "SYS", (0, 3): "SYS", (1, 2): "SYS", (1, 3): "SYS", (2, 3): "NV4"},
        ),
        (WITH_CARD, {(0, 1): "PHB"}),
        ("", {}),
        ("GPU0\t X \n", {}),
    ],
    ids=["nvlink", "network card", "nothing", "one"],
)
def test_links_between_gpus_are_read_from_the_topology(text: str, links: dict[tuple[int, int], str]) -> None:
    assert parse_links(text) == links


def findings_of(machine: Machine, name: str) -> Finding:
    return next(finding for finding in check(machine) if finding.name == name)


@pytest.mark.parametrize("machine", [FIT, NO_GPU], ids=["two GPUs", "none"])
def test_a_machine_that_lacks_nothing_is_ok(machine: Machine) -> None:
    assert {finding.status for finding in check(machine)} == {"ok"}


@pytest.mark.parametrize(
    ("lacking", "name", "status", "advice"),
    [
        ({"versions": FIT.versions | {"python": "3.10.2"}}, "Python", "problem", "3.11 to 3.13"),
        ({"versions": FIT.versions | {"torch": "2.5.1"}}, "PyTorch", "problem", "2.6 or newer"),
        ({"versions": FIT.versions | {"ray": None}}, "Ray", "problem", "--executor threads"),
        ({"loopback": "Permission denied"}, "loopback", "problem", "127.0.0.1"),
        ({"c_compiler": None}, "compiler", "warning", "a C compiler (Debian: apt install gcc)"),
        ({"python_headers": False}, "Python headers", "warning", "apt install python3-dev"),
        ({"shared_memory": 64 << 20}, "shared memory", "warning", "--shm-size"),
        ({"open_files": 256}, "open files", "warning", "ulimit -n"),
        ({"load": 12.0}, "CPU", "warning", "Other programs"),
        ({"runs_free": 1 << 20}, "this folder", "warning", "Free some space"),
        ({"torch_gpus": ()}, "GPU", "warning", "CUDA_VISIBLE_DEVICES"),
        ({"torch_gpus": (), "cuda": None}, "GPU", "warning", "make install ACCELERATOR=cuda"),
        ({"variables": {"LOCALPIPE_MAX_STEPS": "2"}}, "environment", "warning", "Unset it"),
    ],
)
def test_what_a_machine_lacks_is_said_with_what_to_do(
    lacking: dict[str, Any], name: str, status: str, advice: str
) -> None:
    finding = findings_of(replace(FIT, **lacking), name)
    assert finding.status == status
    assert advice in finding.advice
    assert line(finding).startswith(f"{status} ")


def test_a_gpu_without_bf16_or_without_kernels_is_said() -> None:
    older = replace(FIT.torch_gpus[0], capability=(7, 5))
    unknown = replace(FIT.torch_gpus[0], capability=(12, 0), supported=False)
    machine = replace(FIT, torch_gpus=(older, unknown))
    assert "--precision bf16 and tf32 need 8.0" in findings_of(machine, "GPU 0").advice
    assert findings_of(machine, "GPU 1").status == "problem"
    crowded = replace(FIT, driver_gpus=(replace(FIT.driver_gpus[0], used=30_000), FIT.driver_gpus[1]))
    assert "30,000 MiB" in findings_of(crowded, "GPU 0").advice


@pytest.mark.parametrize(
    ("capability", "built", "fits"),
    [
        ((8, 6), ["sm_80", "sm_90a"], True),
        ((7, 0), ["sm_75", "sm_80"], False),
        ((7, 5), ["sm_80"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((12, 0), ["sm_90"], False),
        ((10, 0), ["sm_100"], True),
        ((9, 0), [], False),
    ],
)
def test_kernels_of_a_gpus_generation_or_that_its_driver_compiles_run_on_it(
    capability: tuple[int, int], built: list[str], fits: bool
) -> None:
    assert supported(capability, built) == fits


def test_links_are_shown_and_slow_ones_said() -> None:
    assert findings_of(replace(FIT, topology=TOPOLOGY), "links").status == "ok"
    slow = findings_of(replace(FIT, topology=WITH_CARD.replace("PHB", "SYS")), "links")
    assert slow.status == "warning"
    assert "(0, 1)" not in slow.text


def test_a_cpu_needs_a_compiler_of_cxx() -> None:
    assert "C++" in findings_of(replace(NO_GPU, cxx_compiler=None), "compiler").advice


def test_this_machine_is_looked_at(tmp_path: Path, capsys: Any) -> None:
    status = main(["doctor", "--json", str(tmp_path / "doctor.json")])
    printed = capsys.readouterr().out
    values = json.loads((tmp_path / "doctor.json").read_text())
    assert values["format"] == 1
    assert values["machine"]["versions"]["torch"] == torch.__version__
    assert all(f"{finding['name']}: " in printed for finding in values["findings"])
    assert status == any(finding["status"] == "problem" for finding in values["findings"])


def test_what_a_run_needs_and_is_broken_gives_exit_status_1(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("launch.doctor.command.look", lambda: replace(FIT, loopback="refused"))
    assert main(["doctor"]) == 1
    assert "1 problem: loopback" in capsys.readouterr().err


def test_without_a_gpu_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setattr("launch.doctor.command.look", lambda: NO_GPU)
    assert main(["doctor", "--gpu", "--out", str(tmp_path / "report")]) == 1
    said = capsys.readouterr().err
    assert "no GPU that PyTorch can use is here" in said
    assert "--device cpu" in said
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "there is costs and learning"),
        (["--gpu", "--device", "cpu", "--only", "nonsense"], "Steps: gpu-tests, costs-vit-128"),
        (["--gpu", "--device", "cpu", "--minutes", "0"], "must be above 0"),
        (["costs", "vit-9"], "Nets: vit-128"),
        (["costs", "--device", "cpu", "--precision", "tf32"], "a GPU's"),
        (["costs", "--steps", "0"], "at least 1"),
        (["learning"], "needs a preset first"),
        (["learning", "cff-vit", "--targets", "0"], "per cent"),
    ],
)
def test_a_mistake_is_refused_before_anything_runs(arguments: list[str], said: str, capsys: Any) -> None:
    assert main(["doctor", *arguments]) == 2
    assert said in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# The steps


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 1), ("cuda", 2), ("cpu", 0)])
def test_every_step_is_a_command_that_is_known(device: str, gpus: int) -> None:
    """Their names are told apart, and each says what it is and has time to show something."""
    steps = steps_for(device, gpus, "cifar10")
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    for step in steps:
        assert step.limit > LEAST
        assert step.title
        if step.reader == "tests":
            assert step.shown().startswith("python -m pytest tests/test_gpu.py")
        else:
            assert step.shown().startswith("launch ")
            assert step.command[step.command.index("--out") + 1] == step.name
            device_given = step.command[step.command.index("--device") + 1] if "--device" in step.command else device
            assert device_given == device


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_flags_of_every_step_are_known_to_its_command(device: str, capsys: Any) -> None:
    for step in steps_for(device, 1, "cifar10"):
        if step.reader == "tests":
            continue
        with pytest.raises(SystemExit):
            main([*step.command, "--help-all"])
        printed = capsys.readouterr().out
        assert [flag for flag in step.command if flag.startswith("--") and flag not in printed] == [], step.name


def test_the_steps_measure_what_the_report_promises() -> None:
    steps = steps_for("cuda", 2, "cifar10")
    every = [" ".join(step.command) for step in steps]
    for promised in ("bench paper", "--precision bf16", "--precision tf32",
                     "--compile on", "--graphs off", "--dim 240", "vit-b-224",
                     "resnet32", "vgg8b", "bench memory", "bench transport", "dcl-vgg8b"):  # fmt: skip
        assert any(promised in command for command in every), promised
    assert steps[0].name == "gpu-tests"
    assert set(WORKLOADS) >= {step.command[2] for step in steps if step.reader == "costs"}


def test_stages_share_a_single_gpu_and_have_two_for_themselves() -> None:
    assert ("--devices", "2") in pairs(steps_for("cuda", 1, "cifar10"), "bench-fp32")
    assert ("--devices", "2") not in pairs(steps_for("cuda", 2, "cifar10"), "bench-fp32")


def pairs(steps: tuple[Step, ...], name: str) -> list[tuple[str, str]]:
    command = next(step.command for step in steps if step.name == name)
    return list(itertools.pairwise(command))


def test_a_step_that_cannot_run_here_says_why() -> None:
    by_name = {step.name: step for step in steps_for("cuda", 1, "made-up")}

    def why(name: str, **here: Any) -> str | None:
        return why_not(by_name[name], **{"num_gpus": 2, "prepared": ("cifar10",), "has_tests": True, **here})

    assert why("plan") is None
    assert why("plan", num_gpus=1) == "needs 2 GPUs, and there is 1"
    assert "launch prepare cifar10" in (why("learn-dcl", prepared=("digits",)) or "")
    assert why("bench-fp32", prepared=()) is None  # it takes made-up images
    assert "an installed package has none" in (why("gpu-tests", has_tests=False) or "")


def test_a_step_gets_its_time_or_what_is_left_of_the_whole() -> None:
    step = Step(name="a", title="A", command=("list",), limit=100, reader="bench")
    assert allowance(step, 1000) == 100
    assert allowance(step, 60) == 60
    assert allowance(step, LEAST - 1) is None


def test_steps_are_chosen_by_name_and_keep_their_order() -> None:
    steps = steps_for("cpu", 0, "digits")
    assert [step.name for step in chosen(steps, ("transport", "memory"), ())] == ["memory", "transport"]
    assert "memory" not in [step.name for step in chosen(steps, (), ("memory",))]
    with pytest.raises(UserError, match="no step is left"):
        chosen(steps, ("memory",), ("memory",))


# ---------------------------------------------------------------------------------------------------------------------
# The run: steps that are given in place of processes


class Told:
    """Runs steps that end as told, on a clock of its own.

    Attributes:
        ends: by name the status, the seconds and what the step wrote to its transport.json.
    """

    def __init__(self, ends: dict[str, Ended]) -> None:
        self.ends, self.clock, self.limits = ends, 0.0, dict[str, float]()

    def now(self) -> float:
        return self.clock

    def run(self, step: Step, limit: float, work: Path) -> Ended:
        self.limits[step.name] = limit
        ended = self.ends[step.name]
        self.clock += ended.seconds
        if ended.status == "done":
            folder = work / step.name
            folder.mkdir()
            (folder / "transport.json").write_text(json.dumps(TRANSPORT))
        return ended


TRANSPORT = {
    "costs": [{"way": "socket", "bytes": 2_000_000, "mb_per_second": 3000.0, "us": 660.0, "cpu_us": 700.0}],
    "absent": {"nccl": "works between GPUs only"},
    "conclusion": "A message of 2 MB takes 0.66 ms",
    "command": "/home/ada/localpipe/.venv/bin/launch bench transport",
}


def step_of(name: str, **given: Any) -> Step:
    values: dict[str, Any] = {"title": f"step {name}", "command": ("bench", "transport"), "limit": 60.0}
    return Step(name=name, **{**values, "reader": "transport", **given})


def ended(status: Any = "done", seconds: float = 10.0, reason: str = "", log: str = "some words\n") -> Ended:
    return Ended(status=status, seconds=seconds, reason=reason, log=log)


@pytest.fixture
def report(tmp_path: Path) -> Report:
    redaction = Redaction(folders={"/home/ada": "~"}, words={"ada": "USER", "tower7": "HOST"})
    return Report(
        folder=tmp_path / "report",
        redaction=redaction,
        machine=replace(FIT, topology=TOPOLOGY.replace("\x1b[4m", "").replace("\x1b[0m", "")),
        findings=check(FIT),
        device="cuda",
        command="launch doctor --gpu",
        started="2026-11-28T10:00:00+0000",
        minutes=30,
        num_steps=4,
    )


def carry_out(steps: list[Step], ends: dict[str, Ended], report: Report, tmp_path: Path, minutes: float = 30) -> Told:
    told = Told(ends)
    work = tmp_path / "work"
    work.mkdir()
    run_all(steps, report, work, minutes=minutes, say=lambda said: None, run=told.run, now=told.now)
    return told


def test_a_step_that_fails_or_takes_too_long_does_not_stop_the_others(report: Report, tmp_path: Path) -> None:
    ends = {
        "a": ended("failed", reason="exit status 1: error: no"),
        "b": ended("stopped", 60, reason="its 60 s were over"),
        "d": ended(),
    }
    steps = [step_of("a"), step_of("b"), step_of("c", gpus=3), step_of("d")]
    carry_out(steps, ends, report, tmp_path)
    assert [(one.step.name, one.status) for one in report.results] == [
        ("a", "failed"),
        ("b", "stopped"),
        ("c", "skipped"),
        ("d", "done"),
    ]
    page = (report.folder / "report.md").read_text()
    assert "4 of 4 steps have ended: 1 done, 1 failed, 1 stopped, 1 skipped." in page
    assert "| c | skipped | – | needs 3 GPUs, and there are 2 |" in page
    assert "| b | stopped | 60 of 60 | its 60 s were over |" in page


def test_steps_are_skipped_once_the_time_is_over(report: Report, tmp_path: Path) -> None:
    ends = {"a": ended(seconds=30), "b": ended(seconds=25)}
    told = carry_out([step_of("a"), step_of("b"), step_of("c")], ends, report, tmp_path, minutes=1)
    assert told.limits == {"a": 60, "b": 30}  # the second gets what is left
    assert report.results[2].status == "skipped"
    assert "1 minutes were over" in report.results[2].reason


def test_a_step_that_leaves_no_figures_has_failed(report: Report, tmp_path: Path) -> None:
    steps = [step_of("a", reader="memory"), step_of("b", reader="tests")]
    carry_out(steps, {"a": ended(), "b": ended()}, report, tmp_path)
    assert [one.reason for one in report.results] == ["it left no figures"] * 2


def test_a_file_that_cannot_be_read_is_that_steps_failure(report: Report, tmp_path: Path) -> None:
    class Damaged(Told):
        def run(self, step: Step, limit: float, work: Path) -> Ended:
            (work / step.name).mkdir()
            (work / step.name / "transport.json").write_text('{"costs": [')
            return ended()

    work = tmp_path / "work"
    work.mkdir()
    told = Damaged({})
    run_all([step_of("a")], report, work, minutes=1, say=lambda said: None, run=told.run, now=told.now)
    assert report.results[0].status == "failed"
    assert "cannot be read" in report.results[0].reason


def test_who_stops_it_by_hand_keeps_the_report(report: Report, tmp_path: Path) -> None:
    ends = {"a": ended(), "b": ended("stopped", reason=BY_HAND)}
    with pytest.raises(KeyboardInterrupt):
        carry_out([step_of("a"), step_of("b"), step_of("c")], ends, report, tmp_path)
    values = json.loads((report.folder / "report.json").read_text())
    assert [step["status"] for step in values["steps"]] == ["done", "stopped", "skipped"]
    assert "3 of 4 steps have ended: 1 done, 1 stopped, 1 skipped." in (report.folder / "report.md").read_text()


def test_the_report_is_there_after_every_step(report: Report, tmp_path: Path) -> None:
    seen: list[int] = []

    class Looking(Told):
        def run(self, step: Step, limit: float, work: Path) -> Ended:
            file = report.folder / "report.json"
            seen.append(len(json.loads(file.read_text())["steps"]) if file.exists() else 0)
            return super().run(step, limit, work)

    work = tmp_path / "work"
    work.mkdir()
    told = Looking({"a": ended(), "b": ended(), "c": ended()})
    steps = [step_of("a"), step_of("b"), step_of("c")]
    run_all(steps, report, work, minutes=9, say=lambda said: None, run=told.run, now=told.now)
    assert seen == [0, 1, 2]


def test_the_report_has_what_a_stranger_needs(report: Report, tmp_path: Path) -> None:
    step = step_of("bench-tf32")
    carry_out([step], {"bench-tf32": ended(log="it printed\n")}, report, tmp_path)
    page = (report.folder / "report.md").read_text()
    for part in (
        "# GPU report",
        "localpipe 0.1.0, PyTorch 2.13.0+cu130, NVIDIA H100, NVIDIA H100.",
        "CUDA | ok | 13.0, driver 580.65.06, NCCL 2.28.9",
        "GPU0\t X \tNV4",
        "| bench-tf32 | done | 10 of 60 |",
        "```text\nlaunch bench transport\n```",
        "| socket | 2 | 3,000 | 660.0 | 700.0 |",
        "- A message of 2 MB takes 0.66 ms",
    ):
        assert part in page, part
    assert (report.folder / "logs" / "bench-tf32.txt").read_text() == "it printed\n"
    assert "NV4" in (report.folder / "topology.txt").read_text()


def test_the_reports_values_have_their_names(report: Report, tmp_path: Path) -> None:
    carry_out([step_of("a")], {"a": ended()}, report, tmp_path)
    values = json.loads((report.folder / "report.json").read_text())
    assert values["format"] == 1
    assert set(values) == {
        "format", "command", "started", "device", "minutes", "num_steps", "note", "machine", "findings", "steps",
    }  # fmt: skip
    (step,) = values["steps"]
    assert set(step) == {
        "name", "title", "command", "status", "seconds", "limit", "reason", "sentences", "tables", "raw",
    }  # fmt: skip
    assert step["raw"]["costs"][0]["us"] == 660.0
    assert values["machine"]["torch_gpus"][0]["capability"] == [9, 0]


# ---------------------------------------------------------------------------------------------------------------------
# What is not in it


def test_nothing_written_names_the_user_or_the_machine(report: Report, tmp_path: Path) -> None:
    log = "ada@tower7:/home/ada/localpipe$ /home/ada/x 10.1.2.3:6379 /home/bob/y canada\n"
    carry_out([step_of("a")], {"a": ended(log=log)}, report, tmp_path)
    for file in report.folder.rglob("*.*"):
        if file.suffix != ".png":
            text = file.read_text()
            for secret in ("/home/ada", "bob", "tower7", "10.1.2.3", "ada@"):
                assert secret not in text, (file.name, secret)
    assert (
        "USER@HOST:~/localpipe$ ~/x ADDRESS:6379 /home/USER/y canada" in (report.folder / "logs" / "a.txt").read_text()
    )


def test_a_folder_within_another_goes_by_its_own_name() -> None:
    redaction = Redaction(folders={"/srv": "A", "/srv/data": "DATA"}, words={})
    assert redaction.text("/srv/data/x /srv/y /srv/database /srv-2") == "DATA/x A/y A/database /srv-2"


def test_addresses_of_others_go_and_versions_and_the_loopback_stay() -> None:
    redaction = Redaction(folders={}, words={})
    said = "127.0.0.1 0.0.0.0 192.168.1.20:80 driver 535.104.05 NCCL 2.28.9"
    assert redaction.text(said) == "127.0.0.1 0.0.0.0 ADDRESS:80 driver 535.104.05 NCCL 2.28.9"


def test_names_of_fields_stay() -> None:
    redaction = Redaction(folders={}, words={"seconds": "USER"})
    assert redaction.values({"seconds": ["seconds", 1, None]}) == {"seconds": ["USER", 1, None]}


def test_this_machines_names_are_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("USER", "grace")
    monkeypatch.setenv("HOME", str(tmp_path / "grace"))
    monkeypatch.setattr("socket.gethostname", lambda: "tower7.example.org")
    redaction = redaction_here({"WORK": str(tmp_path / "jobs")})
    said = redaction.text(f"grace@tower7 tower7.example.org {tmp_path}/grace/a {tmp_path}/jobs/b root")
    assert said == "USER@HOST HOST ~/a WORK/b root"


# ---------------------------------------------------------------------------------------------------------------------
# What steps leave


def test_tests_are_counted_from_what_pytest_printed(tmp_path: Path) -> None:
    """Also of a run that was cut: there is no last line."""
    log = (
        "tests/test_gpu.py::test_bits[fp32] PASSED            [ 10%]\n"
        "tests/test_gpu.py::test_bits[bf16 of two] FAILED     [ 20%]\n"
        "tests/test_gpu.py::test_two SKIPPED (NCCL needs a GPU for each)  [ 30%]\n"
        "SKIPPED [1] tests/test_gpu.py:127: NCCL needs a GPU for each of two stages\n"
    )
    figures = read("tests", tmp_path, log)
    assert figures is not None
    assert figures.raw == {
        "counts": {"passed": 1, "failed": 1, "skipped": 1},
        "failed": ["tests/test_gpu.py::test_bits[bf16 of two]"],
    }
    assert "Skipped: NCCL needs a GPU for each of two stages" in figures.sentences
    assert read("tests", tmp_path, "ERROR: file not found: tests/test_gpu.py\n") is None


def test_a_step_that_left_nothing_has_no_figures(tmp_path: Path) -> None:
    assert [read(reader, tmp_path, "") for reader in ("costs", "bench", "plan", "memory", "transport", "learning")] == [
        None
    ] * 6


def test_a_table_is_markdown() -> None:
    table = Table(headings=("way", "MB/s"), rows=(("a|b", "1"),), title="Ways")
    assert markdown_table(table) == ["**Ways**", "", "| way | MB/s |", "|---|---:|", "| a\\|b | 1 |", ""]


COST = {
    "seconds": [0.02, 0.01, 0.03],
    "first_seconds": 9.0,
    "kernels": 410.0,
    "launches": 12.0,
    "operators": 500.0,
    "busy_seconds": 0.015,
    "busy_share": 0.75,
    "peak_bytes": 2**30,
    "tf32_matmul": True,
    "tf32_convolutions": True,
    "loss": 5.0,
    "parameters": [1000, 50],
}
COST_ROW = {
    "net": "vit-128",
    "learning": "local",
    "precision": "tf32",
    "compile": "off",
    "graphs": "on",
    "batch": 512,
    "cost": COST,
    "trouble": None,
}


def test_costs_of_a_step_become_a_row_or_a_sentence(tmp_path: Path) -> None:
    failed = {**COST_ROW, "cost": None, "compile": "on", "trouble": "it does not fit"}
    (tmp_path / "costs.json").write_text(json.dumps({"rows": [COST_ROW, failed]}))
    assert len(rows_of(tmp_path / "costs.json")) == 2
    figures = read("costs", tmp_path, "")
    assert figures is not None
    (row,) = figures.tables[0].rows
    cells = dict(zip(COLUMNS, row, strict=True))
    assert (cells["images/s"], cells["ms a step"], cells["kernels"]) == ("25,600", "20.00", "410")
    assert (cells["busy"], cells["peak MiB"], cells["parameters"]) == ("75 %", "1,024", "1,000 + 50")
    assert figures.sentences == ("vit-128, local, tf32, compile on, graphs on: it does not fit",)


@pytest.mark.pictures
def test_pictures_are_drawn_of_what_was_measured(report: Report) -> None:
    peaks = [{"depth": depth, "what": "stage", "bytes": depth * 2**20} for depth in (2, 4)]
    points = [{"epoch": 1, "seconds": 3.0, "accuracy": 0.4}, {"epoch": 2, "seconds": 6.0, "accuracy": 0.6}]
    for reader, raw in (
        ("costs", {"rows": [COST_ROW, {**COST_ROW, "learning": "backprop", "precision": "fp32"}]}),
        ("memory", {"peaks": [*peaks, {"depth": 8, "what": "serial", "bytes": None}]}),
        ("learning", {"net": "ViT[128 4 5]", "learning": "cff", "points": points}),
    ):
        step = step_of(reader, reader=reader)
        report.add(StepResult(step=step, status="done", seconds=1.0, figures=Figures(raw=raw)))
    names = {"throughput.png", "memory.png", "accuracy.png"}
    assert {file.name for file in report.folder.glob("*.png")} == names
    page = (report.folder / "report.md").read_text()
    assert all(f"]({name})" in page for name in names)


def test_a_trace_is_summed_to_kernels_and_busy_time() -> None:
    """Kernels that overlap count once as time; a copy is busy and no kernel; an operator within another is not seen."""
    events = [
        {"ph": "X", "cat": "kernel", "name": "gemm", "tid": 7, "ts": 0.0, "dur": 10.0},
        {"ph": "X", "cat": "kernel", "name": "norm", "tid": 8, "ts": 5.0, "dur": 10.0},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy", "tid": 7, "ts": 20.0, "dur": 5.0},
        {"ph": "X", "cat": "gpu_user_annotation", "name": "Optimizer.step", "tid": 7, "ts": 0.0, "dur": 99.0},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "tid": 1, "ts": 0.0, "dur": 1.0},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaGraphLaunch", "tid": 1, "ts": 2.0, "dur": 1.0},
        {"ph": "X", "cat": "cpu_op", "name": "aten::linear", "tid": 1, "ts": 0.0, "dur": 8.0},
        {"ph": "X", "cat": "cpu_op", "name": "aten::addmm", "tid": 1, "ts": 1.0, "dur": 4.0},
        {"ph": "X", "cat": "cpu_op", "name": "aten::add", "tid": 1, "ts": 9.0, "dur": 1.0},
        {"ph": "i", "cat": "cpu_op", "name": "a mark", "ts": 9.0},
    ]
    gpu = summed(events, "cuda", 2)
    assert (gpu.kernels, gpu.launches, gpu.operators) == (1.0, 1.0, 1.0)
    assert gpu.busy_seconds == pytest.approx(10e-6)  # (15 + 5) µs in two steps
    cpu = summed(events, "cpu", 1)
    assert (cpu.kernels, cpu.launches, cpu.operators) == (None, None, 2.0)
    assert cpu.busy_seconds == pytest.approx(9e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Seconds to an accuracy


def test_the_first_epoch_with_an_accuracy_gives_its_time() -> None:
    points = [Point(epoch=1, seconds=2, accuracy=0.5), Point(epoch=2, seconds=4, accuracy=0.85)]
    high, higher = reached(points, [0.9, 0.8])
    assert (high.target, high.seconds, high.epoch) == (0.8, 4, 2)
    assert higher.seconds is None
    assert sentence(high, points) == "80 %: after 4 s, in epoch 2"
    assert sentence(higher, points) == "90 %: not reached in 4 s, 2 epochs; best 85.00 %"
    assert "no epoch" in sentence(reached([], [0.9])[0], [])


def validated(epoch: int, accuracy: float, layer: int, kind: Kind = Kind.VALIDATE) -> PassReport:
    report = LayerReport(layer=layer, loss=1.0, losses=np.zeros(1, np.float32), accuracy=accuracy)
    return PassReport(stage=0, kind=kind, epoch=epoch, layers=[report])


def test_the_clock_notes_the_last_layer_and_stops_the_run() -> None:
    ways: Any = {"learning": "local", "precision": "fp32", "compile_": "off", "graphs": "off"}
    spec = spec_of(WORKLOADS["vit-128"], device="cpu", batch=4, **ways)
    time, written = [0.0], list[int]()
    note: Callable[[Any], None] = lambda points: written.append(len(points))  # noqa: E731
    clock = LearningClock(spec, 100, [0.8], note, now=lambda: time[0])
    time[0] = 5.0
    clock.pass_finished(validated(0, 0.9, layer=0))  # not the last layer
    clock.pass_finished(validated(0, 0.9, layer=4, kind=Kind.TRAIN))
    clock.pass_finished(validated(0, 0.5, layer=4))
    assert clock.points == [Point(epoch=1, seconds=5.0, accuracy=0.5)]
    assert not clock.interrupted()
    time[0] = 7.0
    clock.pass_finished(validated(1, 0.8, layer=4))
    assert clock.interrupted()  # it has what it was to reach
    assert written == [1, 2]
    late = LearningClock(spec, 100, [0.8], note, now=lambda: time[0])
    time[0] = 107.0
    assert late.interrupted()


def test_a_short_run_leaves_its_curve(tmp_path: Path, capsys: Any) -> None:
    arguments = ["cff-vit", "--executor", "serial", "--dim", "16", "--heads", "2", "--depth", "2", "--epochs", "2"]
    folder = tmp_path / "learning"
    assert main(["doctor", "learning", *arguments, "--device", "cpu", "--targets", "99", "--out", str(folder)]) == 0
    values = json.loads((folder / "learning.json").read_text())
    assert [point["epoch"] for point in values["points"]] == [1, 2]
    assert values["reached"][0]["seconds"] is None
    assert "99 %: not reached" in capsys.readouterr().out
    figures = read("learning", folder, "")
    assert figures is not None
    assert figures.sentences[0] == "ViT[16 2 2] on digits, cff, stages: 1."


# ---------------------------------------------------------------------------------------------------------------------
# Processes


def test_made_up_images_are_a_source_with_every_class() -> None:
    source = MadeUpImages()
    images = list(source.read("test"))
    assert len(images) == source.counts["test"]
    assert images[0][0].shape == (32, 32, 3)
    assert {label for _, label in images} == set(range(10))


def test_every_nets_step_can_be_built() -> None:
    for name, workload in WORKLOADS.items():
        for learning in get_args(Learning):
            spec = spec_of(
                workload,
                device="cpu",
                learning=learning,
                precision="bf16",
                compile_="off",
                graphs="off",
                batch=4,
            )
            assert (spec.num_layers == 1) == (learning == "backprop"), name


def test_a_steps_process_finds_the_program_and_the_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found = environment({"LOCALPIPE_DATA": "data", "PYTHONPATH": "x"})
    assert found["LOCALPIPE_DATA"] == str(tmp_path / "data")
    assert found["PYTHONPATH"].endswith(":x")


def test_the_reason_of_a_failure_is_its_error() -> None:
    assert last_words("some\nerror: no such flag\n  see --help\n", 2) == "exit status 2: error: no such flag"
    assert last_words("", -signal.SIGKILL) == "by signal SIGKILL: it printed nothing"
    assert len(last_words("x" * 1000, 1)) < 330


@pytest.mark.slow
def test_a_step_ends_in_time_with_all_that_it_started(tmp_path: Path) -> None:
    step = step_of("learn", reader="learning", command=(
        "doctor", "learning", "cff-vit", "--executor", "serial", "--device", "cpu", "--epochs", "5000",
        "--seconds", "900", "--targets", "100", "--out", "learn",
    ))  # fmt: skip
    done = run_step(step, 6, tmp_path)
    assert (done.status, done.reason) == ("stopped", "its 6 s were over")
    refused = run_step(replace(step, name="b", command=("doctor", "nonsense")), 60, tmp_path)
    assert refused.status == "failed"
    assert refused.reason.startswith("exit status 2: error: launch doctor nonsense")


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(700)
def test_a_report_on_cpus(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    steps = ("gpu-tests", "costs-vit-128")
    launched = launch(
        tmp_path, "doctor", "--gpu", "--device", "cpu", "--only", *steps, "--minutes", "10", "--out", str(folder)
    )
    assert launched.finish(650) == 0, launched.text()
    values = json.loads((folder / "report.json").read_text())
    assert [(step["name"], step["status"]) for step in values["steps"]] == [(name, "done") for name in steps]
    costs = values["steps"][1]["raw"]["rows"]
    assert [(row["learning"], row["precision"]) for row in costs] == [("local", "fp32"), ("backprop", "fp32")]
    assert all(row["cost"]["operators"] > 50 and row["cost"]["peak_bytes"] > 0 for row in costs)
    assert (folder / "throughput.png").stat().st_size > 1000
    text = "".join(file.read_text() for file in folder.rglob("*.*") if file.suffix != ".png")
    assert str(Path.home()) not in text
    assert str(tmp_path) not in text
    launched.assert_nothing_left()


def test_a_failed_step_gives_exit_status_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setattr("launch.doctor.command.look", lambda: FIT)
    monkeypatch.setattr(
        "launch.doctor.command.run_step", lambda step, limit, work: ended("failed", reason="exit status 1: error: no")
    )
    arguments = ["doctor", "--gpu", "--device", "cpu", "--only", "memory", "--out", str(tmp_path / "report")]
    assert main(arguments) == 1
    assert "1 step failed: memory" in capsys.readouterr().err
    assert (tmp_path / "report" / "report.md").is_file()
    assert main(arguments) == 2  # the folder holds something
    assert "Give a new folder" in capsys.readouterr().err


def test_a_machine_without_data_is_given_made_up_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Path] = []

    def look_at_data(step: Step, limit: float, work: Path) -> Ended:
        seen.append(work / step.command[step.command.index("--data") + 1])
        assert (seen[-1] / "index.json").is_file()
        return ended("failed", reason="exit status 1: error: no")

    monkeypatch.setattr("launch.doctor.command.look", lambda: replace(FIT, prepared=("digits",)))
    monkeypatch.setattr("launch.doctor.command.run_step", look_at_data)
    arguments = ["doctor", "--gpu", "--only", "bench-fp32", "--out", str(tmp_path / "report")]
    assert main(arguments) == 1
    assert not seen[0].exists()  # it is gone with the other files of the run
    assert "random images of its size" in (tmp_path / "report" / "report.md").read_text()


def test_out_of_memory_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Dying:
        def __init__(self, *_: Any) -> None: ...

        def __class_getitem__(cls, _: Any) -> type[Self]:
            return cls

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def ask(self, steps: int) -> None:
            raise RunError("vit-128, fp32 failed: a batch of 512 does not fit in the GPU's memory")

    monkeypatch.setattr("launch.doctor.costs.Child", Dying)
    folder = tmp_path / "costs"
    assert main(["doctor", "costs", "vit-128", "--device", "cpu", "--compile", "off", "--out", str(folder)]) == 1
    assert all("does not fit" in row.trouble for row in rows_of(folder / "costs.json") if row.trouble)
