"""From a person's machine to a cluster of three others and back: `ray up`, `launch PRESET --cluster`, `launch down`.

The hosts are namespaces of this machine, each with an sshd. Every test has what the ones before it left.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launch.cli import main
from tests.support_hosts import Hosts, filled_in, missing

if (_reason := missing()) is not None:
    pytest.skip(_reason, allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent
_HEAD, _WORKERS = 1, (2, 3)
_SMALL = ["cff-vit", "--dim", "16", "--heads", "2", "--depth", "3", "--readout-epochs", "1", "--epochs"]
_WRONG = "0123456789abcdef" * 4
_ALIVE = "import ray; ray.init('auto', logging_level=40); print('alive', sum(node['Alive'] for node in ray.nodes()))"


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Host 0, where localpipe and a cluster.yaml are in ~/localpipe, and a cluster of hosts 1 to 3 that is up."""
    with Hosts(3) as made:
        file = made.check_out(0, ROOT) / "cluster.yaml"
        workers = ", ".join(made.address(host) for host in _WORKERS)
        changes = {
            "head_ip: 192.168.1.10": f"head_ip: {made.address(_HEAD)}",
            "[192.168.1.11, 192.168.1.12]": f"[{workers}]",
            "ssh_user: ubuntu # <- the same": "ssh_user: root # <- the same",
            "~/.ssh/localpipe": "~/.ssh/id_ed25519",
        }
        file.write_text(filled_in(file.read_text("utf-8"), changes), "utf-8")
        up = "ray get-auth-token --generate && ray up -y cluster.yaml"
        said = made.run(0, "bash", "-c", up, cwd="localpipe", seconds=400)
        assert said.returncode == 0, said.stdout
        assert "has joined (2 of 2)" in said.stdout
        yield made


def _until(holds: Callable[[], Any], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.5)


class Typed:
    """A command that a person typed on host 0, in ~/localpipe."""

    def __init__(self, hosts: Hosts, *command: str) -> None:
        self._process = hosts.start(0, *command, cwd="localpipe")
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said += line

    def wait_for(self, text: str) -> None:
        """Waits until it says this."""
        _until(lambda: text in self.said or not self._reader.is_alive(), 240, f"no {text!r}:\n{self.said}")
        assert text in self.said, self.said

    def stop(self, number: signal.Signals) -> None:
        """Sends it a signal; the process that is seen from here has only brought it to its host."""
        bringing = self._process.pid
        (command,) = Path(f"/proc/{bringing}/task/{bringing}/children").read_text().split()
        os.kill(int(command), number)

    def finish(self) -> int:
        """Its exit status."""
        status = self._process.wait(240)
        self._reader.join(60)
        return status


def _one_run(hosts: Hosts, name: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((hosts.home(0) / "localpipe" / "runs" / name / "summary.json").read_text())
    return summary


def test_all_hosts_of_cluster_yaml_are_up(hosts: Hosts) -> None:
    """Symptom: one of the workers was never started."""
    assert "alive 3" in hosts.run(_HEAD, "python", "-c", _ALIVE).stdout


def test_a_run_from_outside_spreads_over_the_hosts_and_comes_back_with_the_serial_loops_bits(
    hosts: Hosts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = Typed(hosts, "launch", *_SMALL, "2", "--cluster", "cluster.yaml", "--stages", "3", "--run-dir", "runs/a")
    assert typed.finish() == 0, typed.said
    assert f"running on {hosts.address(_HEAD)} as the Ray job a (--cluster cluster.yaml)" in typed.said
    assert "RAY_ADDRESS is set" in typed.said
    assert "fetched: runs/a" in typed.said
    run = hosts.home(0) / "localpipe" / "runs" / "a"
    assert {"model.safetensors", "curves.png", "summary.json"} <= {path.name for path in run.iterdir()}
    assert list(run.glob("events.out.tfevents*"))
    summary = _one_run(hosts, "a")
    there = {host["name"]: host["stages"] for host in summary["hosts"]}
    assert list(there) == [hosts.name(host) for host in (_HEAD, *_WORKERS)]
    assert sorted(stage for stages in there.values() for stage in stages) == [1, 2, 3]
    assert len([stages for stages in there.values() if stages]) > 1, "spread"
    assert all(stages[-1] - stages[0] == len(stages) - 1 for stages in there.values() if stages), "neighbours together"
    assert main([*_SMALL, "2", "--executor", "serial", "--run-dir", str(tmp_path / "serial"), "-q"]) == 0
    serial, spread = (load_file(folder / "model.safetensors") for folder in (tmp_path / "serial", run))
    assert serial.keys() == spread.keys()
    assert all(torch.equal(serial[name], spread[name]) for name in serial)


@pytest.mark.exhaustive
def test_ctrl_c_here_saves_a_checkpoint_there_and_fetches_it(hosts: Hosts) -> None:
    """Symptom: Ctrl-C ended the viewer alone, and `ray job stop` the run without a checkpoint."""
    typed = Typed(hosts, "launch", *_SMALL, "500", "--cluster", "cluster.yaml", "--run-dir", "runs/b")
    typed.wait_for("epoch ")
    typed.stop(signal.SIGINT)
    assert typed.finish() == 130, typed.said
    assert "stopping: the run saves a checkpoint" in typed.said
    assert "go on with: launch resume runs/b" in typed.said
    assert _one_run(hosts, "b")["status"] == "interrupted"
    assert list((hosts.home(0) / "localpipe" / "runs" / "b" / "checkpoints").glob("*/manifest.json"))


@pytest.mark.exhaustive
def test_a_run_whose_connection_is_lost_goes_on_and_is_fetched_by_attach(hosts: Hosts) -> None:
    before = _one_run(hosts, "b")["epochs_finished"]
    typed = Typed(hosts, "launch", "resume", "runs/b", "--cluster", "cluster.yaml", "--stages", "2")
    typed.wait_for("epoch ")
    hosts.cut(0)
    assert typed.finish() == 1, typed.said
    assert typed.said.splitlines()[-1].endswith("`launch attach` shows and fetches it."), typed.said
    hosts.join(0)
    attached = Typed(hosts, "launch", "attach", "cluster.yaml", "b")
    attached.wait_for("epoch ")
    attached.stop(signal.SIGINT)
    assert attached.finish() == 130, attached.said
    assert _one_run(hosts, "b")["epochs_finished"] > before


@pytest.mark.exhaustive
@pytest.mark.timeout(1500)  # two runs, the first one twice
def test_a_sweep_there_is_stopped_goes_on_and_comes_back_whole(hosts: Hosts) -> None:
    """Symptom: Ray sends its SIGTERM to the sweep and to its runs, which took the sweep's own for a second one."""
    flags = ["--stages", "2", "--seeds", "2", "--cluster", "cluster.yaml", "--run-dir", "runs/s"]
    typed = Typed(hosts, "launch", *_SMALL, "40", *flags)
    trained = hosts.home(_HEAD) / "runs" / "s" / "seed=0" / "metrics.jsonl"
    _until(lambda: trained.is_file() and trained.read_text(), 600, "no epoch")
    typed.stop(signal.SIGINT)
    assert typed.finish() == 130, typed.said
    assert "go on with: launch resume runs/s" in typed.said and "fetched: runs/s" in typed.said
    assert _one_run(hosts, "s/seed=0")["status"] == "interrupted"
    assert list((hosts.home(0) / "localpipe" / "runs" / "s" / "seed=0" / "checkpoints").glob("*/manifest.json"))
    detached = hosts.run(0, "launch", "resume", "runs/s", "--cluster", "cluster.yaml", "--detach", cwd="localpipe")
    assert "launch attach cluster.yaml s" in detached.stdout, detached.stdout
    attached = Typed(hosts, "launch", "attach", "cluster.yaml", "s")
    assert attached.finish() == 0, attached.said
    assert "seed=0: goes on" in attached.said and "seed=1: begins" in attached.said
    assert [_one_run(hosts, f"s/seed={seed}")["status"] for seed in (0, 1)] == ["finished"] * 2
    kept = json.loads((hosts.home(0) / "localpipe" / "runs" / "s" / "sweep.json").read_text())
    assert kept["points"][0]["test_accuracy"]["mean"] > 0 and "sweep folder: runs/s" in attached.said


@pytest.mark.parametrize(
    ("host", "address", "token", "said"),
    [
        (0, "{head}:6379", {}, "From here give --address ray://{head}:10001"),
        (
            0,
            "ray://{head}:10001",
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _WRONG},
            "asks for its token, not the one in RAY_AUTH_TOKEN",
        ),
        pytest.param(  # Ray takes the one in ~/.ray of itself
            0,
            "ray://{head}:10001",
            {"HOME": "/nowhere"},
            "asks for its token, this process gives none",
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            1,
            "auto",
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _WRONG},
            "asks for its token, not the one in RAY_AUTH_TOKEN",
            marks=pytest.mark.exhaustive,
        ),
        (1, "auto", {"RAY_AUTH_MODE": "token", "HOME": "/nowhere"}, "there is no token here"),
    ],
)
def test_an_address_or_a_token_that_cannot_do_is_one_line_at_once(
    hosts: Hosts, host: int, address: str, token: dict[str, str], said: str
) -> None:
    """Symptom: Ray tried for a minute, and then did not say what was wrong."""
    head = hosts.address(_HEAD)
    done = hosts.run(
        host, "launch", "cff-vit", "--address", address.format(head=head), "--run-dir", "run", seconds=60, **token
    )
    errors = [line for line in done.stdout.splitlines() if not line.startswith(("opening", "writing"))]
    assert done.returncode == 1, done.stdout
    assert len(errors) == 1 and errors[0].startswith("error: ") and said.format(head=head) in errors[0], done.stdout


def test_on_the_head_launch_joins_the_node_that_runs_there(hosts: Hosts) -> None:
    done = hosts.run(_HEAD, "launch", "cff-vit", "--dry-run")
    assert done.returncode == 0, done.stdout
    assert "(of the Ray node on this machine; --address local starts Ray for this run alone)" in done.stdout
    assert "cpu: " in done.stdout


@pytest.mark.exhaustive
def test_from_outside_ray_s_client_is_joined_with_the_right_token(hosts: Hosts) -> None:
    address = f"ray://{hosts.address(_HEAD)}:10001"
    done = hosts.run(0, "launch", "cff-vit", "--dry-run", "--address", address, RAY_AUTH_MODE="token")
    assert done.returncode == 0, done.stdout
    assert "Nothing was started" in done.stdout


@pytest.mark.exhaustive
def test_down_leaves_no_process_and_no_key_on_any_host(hosts: Hosts) -> None:
    """Symptom: `ray down` ended Ray on the head alone, and left the person's private key there."""
    done = hosts.run(0, "launch", "down", "cluster.yaml", cwd="localpipe")
    assert done.returncode == 0, done.stdout
    for host in (_HEAD, *_WORKERS):
        # What Ray's own `ray up` keeps open for a while are connections.
        end = time.monotonic() + 60
        while (left := hosts.processes(host)) and time.monotonic() < end:
            time.sleep(0.5)
        assert not left
        assert not list(hosts.home(host).glob("*.pem"))


@pytest.mark.exhaustive
def test_a_cluster_that_is_down_is_one_line(hosts: Hosts) -> None:
    done = hosts.run(0, "launch", "cff-vit", "--cluster", "cluster.yaml", cwd="localpipe")
    assert done.returncode == 1, done.stdout
    assert done.stdout.splitlines()[-1].startswith("error: Ray does not run on"), done.stdout


@pytest.mark.exhaustive
def test_a_head_that_is_not_there_is_one_line(hosts: Hosts) -> None:
    hosts.cut(_HEAD)
    done = hosts.run(0, "launch", "attach", "cluster.yaml", cwd="localpipe")
    assert done.returncode == 1, done.stdout
    (said,) = done.stdout.splitlines()
    assert said.startswith("error: cluster.yaml: its head, root@") and "cannot be reached" in said
