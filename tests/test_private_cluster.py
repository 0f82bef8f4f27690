"""A private cluster leaves nothing behind, unless the run failed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.settings import Settings
from pipeline.kind import Kind
from pipeline.telemetry.clock import Clock
from pipeline.telemetry.reports import LayerReport, PassReport, Status
from tests.conftest import make_run
from tests.support_cli import in_fresh_python
from tests.test_culprit import polled
from workers.names import StageName
from workers.stage import Polled
from workers.watch import _processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # a busy machine takes minutes to start Ray

_PROGRAM = """
import os, signal, time
from pathlib import Path
from launch.presets import PRESETS
from workers.cluster import StartingCluster
from workers.watch import _processes
with StartingCluster(PRESETS['cff-vit'].settings) as starting:
    starting.wait()
    import ray
    ray.get(ray.put(1))
    starting.failed = {failed}
    (folder,) = Path({temporary!r}).glob('lp-*')
    (session,) = (folder / 'ray').glob('session_2*')
    print(session)
    raylet = next(one.pid for one in _processes() if one.name == 'raylet' and one.parent == os.getpid())
    # Workers have groups of their own, a moment after they are started.
    while len(agents := [one.pid for one in _processes() if one.parent == raylet and one.group == raylet]) != 2:
        time.sleep(0.1)
    for agent in agents:
        os.kill(agent, signal.SIGSTOP)
        print(agent)
"""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder whose name is short, as the paths of Ray's sockets begin with it."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.parametrize("failed", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_ray_s_folder_and_agents_go_with_the_cluster(
    temporary: Path, failed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Symptoms: every run left a folder in the temporary one, for ever; agents of Ray's outlived a run by minutes."""
    monkeypatch.setenv("RAY_TMPDIR", str(temporary))
    other = temporary / "ray" / "session_1999-01-01_00-00-00_0_1"  # somebody else's
    other.mkdir(parents=True)
    line, *agents = in_fresh_python(_PROGRAM.format(failed=failed, temporary=str(temporary))).split()
    session = Path(line)
    assert len(agents) == 2
    end = time.monotonic() + 60
    while left := {one.pid for one in _processes()} & {int(pid) for pid in agents}:  # killed, and gone a moment later
        assert time.monotonic() < end, left
        time.sleep(0.1)
    assert session.is_relative_to(temporary)
    assert (session / "logs").is_dir() == failed
    assert session.parent.parent.exists() == failed
    assert other.is_dir()


class Reporting:
    """An actor that answers a poll as a stage does."""

    def poll(self, attempt: int) -> Polled:
        layer = LayerReport(layer=0, losses=np.ones(1000, np.float32), loss=1.0)
        report = PassReport(stage=0, kind=Kind.TRAIN, epoch=0, layers=[layer])
        return Polled(Status(stage=0, account=Clock().read()), [report], [], saving=False)


def test_what_is_kept_of_a_report_keeps_no_whole_answer(small_settings: Settings, cluster: None) -> None:
    """Symptom: the launching process grew by what every stage had ever sent."""
    import ray

    from workers.group import RayWorkers

    spec, _ = make_run(replace(small_settings, pipeline=replace(small_settings.pipeline, executor="ray")), stages=1)
    group, actor = RayWorkers(spec), ray.remote(Reporting).options(num_cpus=0)
    reporting: Any = actor.remote()
    ray.get(reporting.__ray_ready__.remote())
    group._crew.stages = {StageName(0): reporting}
    ((_, (report,)),) = polled(group)
    assert report.layers[0].losses.base is None
    ray.kill(reporting)
