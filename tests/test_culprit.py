"""Of the errors that a dead worker or machine causes, a run ends with the one that names it."""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import DistNetworkError

from pipeline.config.settings import Settings
from pipeline.errors import NonFiniteLossError, PeerLostError, RunError, StageFailedError
from pipeline.telemetry.clock import Clock
from pipeline.telemetry.reports import Status
from tests.conftest import make_run
from tests.support_cli import launch
from workers.failures import HostLostError, WorkerDiedError, WorkerUnreachableError, culprit
from workers.stage import Polled

pytestmark = pytest.mark.timeout(600)  # a busy machine takes minutes to start a run

_LONG = ["cff-vit", "--dim", "32", "--batch-size", "64", "--epochs", "500", "--stages", "2", "--device", "cpu"]


class Neighbour:
    """An actor that does what a worker does when things go wrong."""

    def pid(self) -> int:
        return os.getpid()

    def lose_the_connection(self) -> None:
        raise DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed.\nException raised from …")

    def end(self) -> None:
        time.sleep(1.0)  # later than the neighbour's complaint
        os._exit(1)

    def poll(self, attempt: int) -> Polled:
        return Polled(Status(stage=0, account=Clock().read()), [], [], saving=False)

    def candidate(self, attempt: int, epoch: int) -> dict[str, int]:
        return {f"weights of {os.getpid()}": epoch}

    def trained(self, attempt: int) -> dict[str, int]:
        return {f"state of {os.getpid()}": 0}


def group_of(settings: Settings, *, stages: int = 1) -> Any:
    from workers.group import RayWorkers

    spec, _ = make_run(replace(settings, pipeline=replace(settings.pipeline, executor="ray")), stages=stages)
    return RayWorkers(spec)


def polled(group: Any) -> Any:
    """What its stages have to say; on a busy machine an answer may come later than a look waits for it."""
    while not (told := group.poll()):
        pass
    return told


def test_a_death_comes_before_what_its_neighbours_say() -> None:
    lost, unreachable = PeerLostError("stage 1 → stage 2: the neighbour is gone"), WorkerUnreachableError("stage 1")
    died, host, nan = WorkerDiedError("stage 2 died"), HostLostError("host lost"), NonFiniteLossError(2, float("nan"))
    behind = NonFiniteLossError(5, float("nan"))  # in a stage that was sent what is no number
    other: RunError = StageFailedError("feeder 1 failed: OSError")
    cases: list[tuple[list[RunError], RunError]] = [
        ([lost, died], died),
        ([lost, unreachable, died, host], host),
        ([unreachable, lost, nan, other], nan),
        ([lost, behind, nan], nan),
        ([lost, unreachable], unreachable),
        ([lost], lost),
    ]
    for failures, cause in cases:
        assert culprit(failures) is cause


def test_while_a_run_is_set_up_too_the_one_that_died_is_named(small_settings: Settings, cluster: None) -> None:
    """Symptom: "feeder 1 failed: DistNetworkError", with lines of a C++ stack, where a stage had died."""
    import ray

    actor: Any = ray.remote(Neighbour).options(num_cpus=0)
    feeder, stage = actor.remote(), actor.remote()
    ray.get([feeder.pid.remote(), stage.pid.remote()])
    asked = {"feeder 1": feeder.lose_the_connection.remote(), "stage 1 (layer 1)": stage.end.remote()}
    with pytest.raises(WorkerDiedError, match=r"^stage 1 \(layer 1\) died: its process \d+ on [\d.]+ has ended: .*$"):
        group_of(small_settings)._all(asked)
    ray.kill(feeder)


def test_a_stage_that_dies_while_its_weights_are_fetched_is_named(small_settings: Settings, cluster: None) -> None:
    """Symptom: "a stage died", where both hold what the run learned."""
    import ray

    from workers.names import StageName

    actor: Any = ray.remote(Neighbour).options(num_cpus=0)
    group, first, second = group_of(small_settings, stages=2), actor.remote(), actor.remote()
    group._crew.stages = {StageName(0): first, StageName(1): second}
    assert len(group.candidate(3)) == 2
    os.kill(ray.get(second.pid.remote()), signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match=r"^stage 2 \(layers 3-4\) died: its process \d+ on [\d.]+ has ended: "):
        group.candidate(3)
    ray.kill(first)


@pytest.mark.parametrize(
    ("number", "patience", "said"),
    [(signal.SIGKILL, 100.0, "died"), (signal.SIGSTOP, 5.0, "has not answered for 5 s")],
)
def test_a_stage_that_answers_no_more_ends_the_run_by_name(
    small_settings: Settings, cluster: None, number: signal.Signals, patience: float, said: str
) -> None:
    """Whatever else Ray says, or does not. Symptom: polls of a stage that was lost failed for ever without a word."""
    import ray

    from workers.names import StageName

    pipe = replace(small_settings.pipeline, stall_timeout=patience)
    group, actor = group_of(replace(small_settings, pipeline=pipe)), ray.remote(Neighbour).options(num_cpus=0)
    stage: Any = actor.remote()
    pid = ray.get(stage.pid.remote())
    group._crew.stages = {StageName(0): stage}
    ((status, reports),) = polled(group)
    assert (status.stage, reports) == (0, [])
    os.kill(pid, number)

    def poll_on() -> None:
        begun = time.monotonic()
        while time.monotonic() - begun < 120:  # it does not hang; some 10 s where nothing else runs
            group.poll()
            time.sleep(0.2)

    with pytest.raises(StageFailedError, match=rf"^stage 1 \(layers 1-4\) {said}"):
        poll_on()
    if number is signal.SIGSTOP:
        os.kill(pid, signal.SIGKILL)


def test_what_the_living_hold_is_fetched_while_others_are_dead_or_stopped(cluster: None) -> None:
    """Symptom: one dead stage lost the layers of all, and a stopped one was waited for, 60 s."""
    import ray

    from workers.salvage import salvage

    actor: Any = ray.remote(Neighbour).options(num_cpus=0)
    owners = {what: actor.remote() for what in ("layer 1", "layers 2-3", "layer 4")}
    living, dead, stopped = ray.get([owner.pid.remote() for owner in owners.values()])
    os.kill(dead, signal.SIGKILL)
    os.kill(stopped, signal.SIGSTOP)
    begun = time.monotonic()
    found = salvage(owners, 0, 7, 300.0)
    assert time.monotonic() - begun < 100  # 5 s where nothing else runs
    os.kill(stopped, signal.SIGKILL)
    assert found.lost == ["layers 2-3", "layer 4"]
    assert found.weights == {f"weights of {living}": 7}
    assert found.last == {f"state of {living}": 0}


@pytest.mark.slow
@pytest.mark.exhaustive  # test_resume_command.py has a run go on after it
@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
def test_a_dead_process_of_ray_s_own_is_the_loss_of_its_host(tmp_path: Path, victim: str) -> None:
    """Symptom: a minute's silence, then "feeder 1 died", or an end without a word by Ray's own hand."""
    launched = launch(tmp_path, *_LONG, "--max-restarts", "0", "--run-dir", str(tmp_path / "run"))
    launched.wait_for("epoch 1/500")
    (process,) = (pid for pid, command in launched.descendants().items() if f"/{victim} " in command)
    begun = time.monotonic()
    os.kill(process, signal.SIGKILL)
    assert launched.finish(120) == 1
    assert time.monotonic() - begun < 55  # noticed within 10 s, then pictures are drawn; 61 s for the head before
    after = launched.text().splitlines()
    (said,) = [line for line in after if line.startswith("error: ")]
    assert re.match(rf"error: host \S+ lost: Ray's {victim} \(process {process}\) has died", said)
    launched.assert_nothing_left()
