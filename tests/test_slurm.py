"""`launch slurm` prints a job that Slurm runs: mistakes are found before it is queued, jobs leave each other alone, and
one that reaches its time limit goes on from its checkpoint, to the same bits.

The last three are shown on a Slurm cluster of two nodes on this machine, where Slurm is installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from tests.support_cli import launch
from tests.support_documents import ROOT
from tests.support_slurm import Slurm, missing, running

_NET = ["--device", "cpu", "--dim", "16", "--heads", "2", "--depth", "3", "--readout-epochs", "1"]
_RUN = [*_NET, "--stages", "2"]


def printed(capsys: Any, *arguments: str) -> str:
    assert main(["slurm", *arguments]) == 0
    script: str = capsys.readouterr().out
    return script


def options(script: str) -> list[str]:
    return re.findall(r"^#SBATCH --(.*)$", script, re.MULTILINE)


def test_the_job_asks_slurm_for_what_was_given(capsys: Any) -> None:
    asked = ["--nodes", "2", "--gpus-per-node", "4", "--time", "24:00:00", "--partition", "gpu", "--account", "me"]
    more = ["--sbatch", "mem=64G", "--sbatch", "exclusive", "--stop-before", "300"]
    found = options(printed(capsys, "cff-vit", *asked, *more))
    assert {"nodes=2", "ntasks-per-node=1", "gpus-per-node=4", "time=24:00:00", "partition=gpu"} <= set(found)
    assert {"account=me", "mem=64G", "exclusive", "signal=B:USR1@300", "requeue", "open-mode=append"} <= set(found)


@pytest.mark.parametrize(
    ("arguments", "cores"),
    [
        (["--cpus-per-node", "7"], 7),
        (["--gpus-per-node", "4", "--", "--feeders", "2", "--stages", "4"], 4 + 2 + 2),
        (["--nodes", "2", "--", "--stages", "3", "--threads", "2"], 2 * 2 + 1 + 2),
        (["--", "--depth", "6"], 6 + 1 + 2),
    ],
    ids=["as given", "a stage per GPU", "stages of two threads on two nodes", "a stage per layer"],
)
def test_a_node_has_cores_for_its_stages_and_what_feeds_them(arguments: list[str], cores: int, capsys: Any) -> None:
    assert f"cpus-per-task={cores}" in options(printed(capsys, "cff-vit", *arguments))


def test_flags_plug_ins_and_set_up_lines_arrive_as_they_were_typed(capsys: Any) -> None:
    plugin = ROOT / "examples" / "plugin_greedy.py"
    line = "source 'my env/bin/activate' && module load \"cuda\""
    run = ["--data", "digits", "--run-dir", "runs/my run"]
    script = printed(capsys, "cff-vit", "--setup", line, "--plugin", str(plugin), "--", *run, "--epochs", "3")
    assert line in script
    told = subprocess.run(
        ["bash", "-c", script.partition("set_up() {")[0] + 'printf "%s\\n" "${arguments[@]}" "$run"'],
        check=True,
        capture_output=True,
        text=True,
        env={"SLURM_JOB_ID": "7"},
    )
    words = told.stdout.splitlines()
    assert words[-6:] == ["cff-vit", "--data", "digits", "--epochs", "3", "runs/my run"]
    assert ("--plugin", str(plugin)) in pairwise(words)  # other tests of this process may have loaded others


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck (Debian: shellcheck)")
def test_shellcheck_has_nothing_to_say(capsys: Any, tmp_path: Path) -> None:
    file = tmp_path / "job.sh"
    file.write_text(printed(capsys, "cff-vit", "--nodes", "2", "--setup", "module load cuda"))
    told = subprocess.run(["shellcheck", str(file)], check=False, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "PRESET"),
        (["cff-vti"], "Did you mean 'cff-vit'?"),
        (["cff-vit", "--nodes", "0"], "--nodes 0: must be at least 1."),
        (["cff-vit", "--stop-before", "70000"], "--stop-before 70000: must be at least 1, at most 65535."),
        (["cff-vit", "--time", "tomorrow"], "--time tomorrow: minutes, or as in 90:00"),
        (["cff-vit", "--account", "a b"], "--account a b: must be one word"),
        (["cff-vit", "--sbatch", "nodes=3"], "--sbatch nodes=3: give the option's long name"),
        (["cff-vit", "--sbatch=--mem=3G"], "--sbatch --mem=3G: give the option's long name"),
        (["cff-vit", "--setup", "one\ntwo"], "--setup takes one line"),
        (["cff-vit", "--", "--dry-run"], "starts nothing anyway"),
        (["cff-vit", "--", "--executor", "serial"], "--executor serial: a job of `launch slurm` trains on Ray"),
        (["cff-vit", "--", "--address", "auto"], "--address auto: the job starts a Ray cluster of its own"),
        (["cff-vit", "--", "--device", "cuda"], "--device cuda: the job asks for no GPU"),
        (["cff-vit", "--", "--batch-size", "1"], "--batch-size 1: a contrastive loss compares"),
        (["cff-vit", "--", "--stages", "9"], "--stages 9"),
        (["cff-vit", "--", "--data", "nowhere/at/all"], "nowhere/at/all"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_found_before_anything_is_queued(arguments: list[str], said: str, capsys: Any) -> None:
    try:
        status: Any = main(["slurm", *arguments])
    except SystemExit as stop:  # tyro's, of flags that it does not know or misses
        status = stop.code
    told = capsys.readouterr()
    assert status == 2
    assert said in told.err
    assert "#SBATCH" not in told.out


# ---------------------------------------------------------------------------------------------------------------------
# On Slurm itself

on_slurm = pytest.mark.skipif(bool(missing()), reason=missing() or "it is here")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Iterator[Slurm]:
    assert main(["prepare", "digits"]) == 0  # two jobs that begin at once cannot both
    with running(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.mark.exhaustive
@on_slurm
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_jobs_on_the_same_nodes_have_a_cluster_each(slurm: Slurm, capsys: Any) -> None:
    script = printed(capsys, "cff-vit", "--nodes", "2", "--cpus-per-node", "4", "--", *_RUN, "--epochs", "2", "-v")
    jobs = [slurm.submit(script), slurm.submit(script)]
    for job in jobs:
        slurm.wait_for(job, "first training step")
    assert {slurm.shown(job)["NodeList"] for job in jobs} == {"node[1-2]"}  # both at the same time
    addresses = set()
    for job in jobs:
        assert slurm.finish(job) == ("COMPLETED", "0:0"), slurm.text(job)
        told = slurm.text(job)
        addresses |= set(re.findall(r"^Ray at (\S+): 2 nodes, 8 CPUs$", told, re.MULTILINE))
        assert f"run folder: runs/cff-vit-{job}" in told
        slurm.assert_nothing_left(job)
    assert len(addresses) == 2


@on_slurm
@pytest.mark.exhaustive  # it takes minutes, most of which Slurm waits
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_at_its_time_limit_is_queued_again_and_ends_with_the_same_bits(
    slurm: Slurm, capsys: Any, tmp_path: Path
) -> None:
    """USR1 to the batch script is what --signal has Slurm send; how long before the limit is Slurm's."""
    epochs = ["--epochs", "20"]
    job = slurm.submit(printed(capsys, "cff-vit", "--nodes", "2", "--cpus-per-node", "4", "--", *_RUN, *epochs))
    slurm.wait_for(job, "epoch 1/20")
    slurm.ask("scancel", "--signal=USR1", "--batch", job)
    assert slurm.finish(job, 600) == ("COMPLETED", "0:0"), slurm.text(
        job
    )  # Slurm waits two minutes before it starts it
    told = slurm.text(job)
    assert slurm.shown(job)["Restarts"] == "1"
    assert f"job {job}: stopped before the time limit; queued again" in told
    assert f"job {job}: going on with runs/cff-vit-{job}" in told
    slurm.assert_nothing_left(job)
    want = tmp_path / "serial"
    serial = launch(tmp_path, "cff-vit", *_NET, *epochs, "--executor", "serial", "--run-dir", str(want), "-q")
    assert serial.finish() == 0, serial.text()
    for name in ("model.safetensors", "last.safetensors", "predictions.csv"):
        assert (slurm.folder / f"runs/cff-vit-{job}" / name).read_bytes() == (want / name).read_bytes(), name


@pytest.mark.exhaustive
@on_slurm
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_whose_script_is_told_to_end_saves_ends_and_is_not_queued_again(slurm: Slurm, capsys: Any) -> None:
    """And another job goes on with its run, where sbatch is told which."""
    script = printed(capsys, "cff-vit", "--cpus-per-node", "4", "--", *_RUN, "--epochs", "500")
    job = slurm.submit(script)
    slurm.wait_for(job, "epoch 2/500")
    slurm.ask("scancel", "--signal=TERM", "--batch", job)
    assert slurm.finish(job) == ("FAILED", "130:0"), slurm.text(job)
    slurm.assert_nothing_left(job)
    run = f"runs/cff-vit-{job}"
    assert list((slurm.folder / run / "checkpoints").glob("*/manifest.json")), slurm.text(job)
    after = slurm.submit(script, LOCALPIPE_RUN=run)
    slurm.wait_for(after, f"job {after}: going on with {run}")
    slurm.wait_for(after, "going on from epoch")
