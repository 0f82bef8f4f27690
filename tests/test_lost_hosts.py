"""Runs on several machines: other software is refused, and a machine that is lost is named and done without.

The machines are namespaces of this one, each with a cable of its own and a Ray started by hand.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.support_cli import ROOT
from tests.support_hosts import Hosts, missing

pytestmark = [
    pytest.mark.exhaustive,  # minutes, on three hosts
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]

_PORT = 6379
_LONG = 120.0  # seconds: no more than that nothing hangs
_WITH = ["env", "RAY_AUTH_MODE=disabled", "RAY_USAGE_STATS_ENABLED=0", "LOCALPIPE_DATA=/root/data", "COLUMNS=160"]
_RUN = [
    *("cff-vit", "--dim", "16", "--heads", "2", "--depth", "4", "--epochs", "40", "--readout-epochs", "1"),
    *("--checkpoint-every", "25", "--resource-timeout", "3"),
]


_HOLD = """
import time

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

class Holder:
    pass

ray.init(address="auto", log_to_driver=False)
here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
holder = ray.remote(Holder).options(num_cpus=1, scheduling_strategy=here).remote()
ray.get(holder.__ray_ready__.remote())
print("held", flush=True)
time.sleep(600)
"""
"""Takes the core of the machine where it runs."""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Five machines of one core each in a Ray cluster, whose head is the first."""
    with Hosts(5) as hosts:
        for host in range(1, 6):
            hosts.lend(host, ROOT)
            where = ["--head", f"--port={_PORT}"] if host == 1 else [f"--address={hosts.address(1)}:{_PORT}"]
            own = [f"--node-ip-address={hosts.address(host)}", "--num-cpus=1", "--object-store-memory=134217728"]
            started = hosts.run(host, *_WITH, "ray", "start", *where, *own)
            assert started.returncode == 0, started.stdout
        yield hosts


def launched(hosts: Hosts, *arguments: str) -> subprocess.Popen[str]:
    """`launch` on the first machine."""
    return hosts.start(1, *_WITH, "python", "-u", "-m", "launch", *arguments)


def said_by(process: subprocess.Popen[str]) -> str:
    """All that a command prints. It must end."""
    try:
        return process.communicate(timeout=_LONG)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"a command does not end:\n{process.communicate()[0]}") from None


def joined(hosts: Hosts) -> list[str]:
    return ["--address", f"{hosts.address(1)}:{_PORT}"]


def bits(hosts: Hosts, run: str) -> bytes:
    return (hosts.home(1) / run / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(hosts: Hosts) -> bytes:
    """What the serial loop learns."""
    done = hosts.run(1, *_WITH, "python", "-m", "launch", *_RUN, "--executor", "serial", "--run-dir", "serial")
    assert done.returncode == 0, done.stdout
    return bits(hosts, "serial")


def disturbed(hosts: Hosts, run: str, stages: int, disturb: Callable[[], None]) -> str:
    """What a run prints that is disturbed in its tenth epoch. It must end well."""
    process = launched(hosts, *_RUN, *joined(hosts), "--stages", str(stages), "--run-dir", run)
    said: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if line.startswith("epoch 10/"):
            disturb()
    assert process.wait() == 0, "".join(said)
    return "".join(said)


def test_doctor_looks_at_every_host_and_between_them(hosts: Hosts) -> None:
    said = said_by(launched(hosts, "doctor", *joined(hosts)))
    one, *others = (hosts.name(host) for host in range(1, 6))
    assert f"launched on {one}" in said
    channels = [line for line in said.splitlines() if " channel " in line]
    assert len(channels) == 4 and all("gloo" in line and "MB/s" in line and "sent again" in line for line in channels)
    assert "localpipe: 0.1.0 (files " in said and "on every host" in said
    assert all(f"clock on {other}: " in said for other in others)


def test_a_host_with_other_sources_is_refused_before_anything_is_started(hosts: Hosts) -> None:
    file = hosts.home(3) / "localpipe" / "pipeline" / "rng.py"
    before = file.read_text()
    file.write_text(before + "# changed\n")
    try:
        process = launched(hosts, *_RUN, *joined(hosts), "--run-dir", "refused")
        said = said_by(process)
    finally:
        file.write_text(before)
    assert process.returncode == 1
    last = said.splitlines()[-1]
    assert last.startswith("error: The hosts of the cluster differ: localpipe is ")
    assert f"{hosts.name(1)} ({hosts.address(1)})" in last and f"{hosts.name(3)} ({hosts.address(3)})" in last
    assert not (hosts.home(1) / "refused").exists()


def test_data_that_a_first_stage_elsewhere_lacks_are_said_before_anything_is_started(hosts: Hosts) -> None:
    """Nothing has room on the launching machine, so with no feeder another one reads."""
    held = hosts.start(1, *_WITH, "python", "-c", _HOLD)
    try:
        assert held.stdout is not None and "held\n" in held.stdout  # reads until it comes
        process = launched(hosts, *_RUN, *joined(hosts), "--stages", "2", "--feeders", "0", "--run-dir", "elsewhere")
        said = said_by(process)
    finally:
        os.killpg(held.pid, signal.SIGKILL)
    assert process.returncode == 1
    assert "digits cannot be read on " in said and "Prepare the same data set on every node that feeds" in said
    assert not (hosts.home(1) / "elsewhere").exists()


def test_a_run_begins_without_a_host_that_does_not_answer(hosts: Hosts, undisturbed: bytes) -> None:
    """Symptom: it was refused until Ray had counted the host as lost, a minute later."""
    hosts.cut(5)
    process = launched(hosts, *_RUN, *joined(hosts), "--stages", "2", "--run-dir", "beside")
    said = said_by(process)
    assert process.returncode == 0, said
    assert f"host {hosts.name(5)} ({hosts.address(5)}) does not answer: the run does without it." in said
    assert bits(hosts, "beside") == undisturbed


def test_where_rays_process_is_killed_the_host_is_named_and_done_without(hosts: Hosts, undisturbed: bytes) -> None:
    said = disturbed(hosts, "killed", 4, lambda: _kill_raylet(hosts, 2))
    assert f"host {hosts.name(2)} ({hosts.address(2)}) lost: Ray's raylet there has died" in said
    assert "There is room for 3 stages of 4. Going on in 3 stages." in said
    assert bits(hosts, "killed") == undisturbed


@pytest.mark.parametrize("how", ["off", "cut"])
def test_where_the_power_goes_or_a_cable_is_cut_the_host_is_named_and_done_without(
    how: str, hosts: Hosts, undisturbed: bytes
) -> None:
    """On the machines that the tests before have left: three, then two."""
    lost, stages, disturb = (4, 3, hosts.power_off) if how == "off" else (3, 2, hosts.cut)
    said = disturbed(hosts, how, stages, lambda: disturb(lost))
    host = f"host {hosts.name(lost)} ({hosts.address(lost)})"
    assert f"{host} lost: it has not answered for " in said, said
    left = "1 stage" if stages == 2 else "2 stages"
    assert f"There is room for {left} of {stages}. Going on in {left}." in said
    assert bits(hosts, how) == undisturbed


def _kill_raylet(hosts: Hosts, host: int) -> None:
    hosts.run(host, "bash", "-c", "kill -9 $(ps -eo pid,args | awk '/raylet\\/raylet /{print $1; exit}')")
