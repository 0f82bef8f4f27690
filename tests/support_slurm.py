"""A Slurm cluster of two nodes on this machine: the real daemons, with a configuration of their own in a folder."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "srun")
_CORES = 8  # that each node offers: Slurm believes what the configuration says
_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
ReturnToService=2
KillWait=30
MinJobAge=3600
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cores} CoresPerSocket={cores} State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cores} CoresPerSocket={cores} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
_OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


def missing() -> str:
    """Why there can be no such cluster here; "" where there can."""
    if os.geteuid() != 0:
        return "needs root, which Slurm's daemons run as"
    gone = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"needs {', '.join(gone)} (Debian: slurmctld, slurmd, slurm-client)" if gone else ""


@dataclass(frozen=True)
class Slurm:
    """The running cluster; jobs work in ``folder``."""

    folder: Path
    environment: dict[str, str]

    def ask(self, *command: str) -> str:
        """What a command of Slurm's prints."""
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, script: str, *options: str, **environment: str) -> str:
        """Queues a script; gives its job's number."""
        file = self.folder / "job.sh"
        file.write_text(script)
        job = Slurm(self.folder, self.environment | environment).ask("sbatch", "--parsable", *options, str(file))
        return job.split(";")[0]

    def shown(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        return dict(re.findall(r"(\w+)=(\S+)", self.ask("scontrol", "show", "job", job)))

    def text(self, job: str) -> str:
        """What a job has printed so far."""
        (name,) = re.findall(r"JobName=(\S+)", self.ask("scontrol", "show", "job", job))
        file = self.folder / f"{name}-{job}.log"
        return file.read_text() if file.exists() else ""

    def wait_for(self, job: str, text: str, seconds: float = 240) -> None:
        """Waits until a job has printed a text."""
        end = time.monotonic() + seconds
        while text not in self.text(job):
            assert self.shown(job)["JobState"] not in _OVER, self.text(job)
            assert time.monotonic() < end, f"{text!r} did not come:\n{self.text(job)}"
            time.sleep(0.3)

    def finish(self, job: str, seconds: float = 300) -> tuple[str, str]:
        """Waits for a job's end; gives its state and exit code as Slurm writes it, such as "0:0"."""
        end = time.monotonic() + seconds
        while (shown := self.shown(job))["JobState"] not in _OVER:
            assert time.monotonic() < end, self.text(job)
            time.sleep(0.3)
        return shown["JobState"], shown["ExitCode"]

    def assert_nothing_left(self, job: str, seconds: float = 60) -> None:
        """No folder and no process of a job's is left on its nodes."""
        mark, end = f"/tmp/localpipe-{job}-", time.monotonic() + seconds  # noqa: S108 (where the script has it)
        while left := [*map(str, Path("/tmp").glob(f"{Path(mark).name}*")), *_commands_with(mark)]:  # noqa: S108
            assert time.monotonic() < end, left
            time.sleep(0.3)


def _commands_with(text: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended while we looked
        if text in command:
            found.append(command)
    return found


@contextmanager
def running(folder: Path) -> Iterator[Slurm]:
    """The cluster for the length of a block; every job that is left ends with it."""
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    host = socket.gethostname().split(".")[0]
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(
        _CONFIGURATION.format(host=host, ports=_free_ports(3), folder=folder, cores=_CORES)
    )
    daemons = []
    try:
        for name, *arguments in (("slurmctld",), ("slurmd", "-N", "node1"), ("slurmd", "-N", "node2")):
            with (folder / f"{'-'.join([name, *arguments])}.out").open("w") as file:
                command = [name, "-D", *arguments]
                daemons.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
        slurm = Slurm(folder, environment)
        _wait_until_idle(slurm)
        yield slurm
        for job in slurm.ask("squeue", "--noheader", "--format=%A").split():
            slurm.ask("scancel", job)
            slurm.finish(job)
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            daemon.wait(30)


def _wait_until_idle(slurm: Slurm, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        asked = subprocess.run(
            ["sinfo", "--noheader", "--format=%t %D"],
            env=slurm.environment,
            check=False,
            capture_output=True,
            text=True,
        )
        if asked.stdout.split() == ["idle", "2"]:
            return
        told = "".join(file.read_text() for file in slurm.folder.glob("*.out"))
        assert time.monotonic() < end, f"{asked.stdout}{asked.stderr}\n{told}"
        time.sleep(0.3)


def _free_ports(count: int) -> list[int]:
    with_sockets = [socket.socket() for _ in range(count)]
    for one in with_sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in with_sockets]
    for one in with_sockets:
        one.close()
    return ports
