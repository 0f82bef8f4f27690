"""Ray's metrics: Prometheus asks for a real run's, and every query of the Grafana dashboard finds some."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.output.logs.figures import LAUNCHING, Figure
from launch.output.logs.ray_metrics import named
from tests.support_cli import ROOT, launch
from tools import grafana

PROMETHEUS = shutil.which("prometheus")
_FOLDER = ROOT / "docker" / "monitoring"


def queries() -> list[str]:
    """Every query of the dashboard about a run on CPUs, with its choices open."""
    of_gpus = [name.replace(" ", "_") for name in LAUNCHING]
    found = [
        target["expr"] for panel in grafana.dashboard()["panels"] for target in panel.get("targets", ())
        if "localpipe" in target["expr"] and not any(name in target["expr"] for name in of_gpus)
    ]  # fmt: skip
    return [expr.replace("$run", ".+").replace('"$stage"', '"2"') for expr in found]


def test_the_dashboard_s_file_is_what_its_program_writes() -> None:
    assert grafana.FILE.read_text() == grafana.text(), "run `python tools/grafana.py`"
    assert len(queries()) > 20


def test_gauges_have_the_names_that_the_dashboard_asks_for() -> None:
    figure = Figure("step ms 99th percentile", "stage 2", 1.0, 3, 0.0, "here cpu")
    assert named(figure, "it") == (
        "localpipe_stage_step_ms_99th_percentile",
        {"run": "it", "stage": "2", "device": "here cpu"},
    )
    asked = {target["expr"] for panel in grafana.dashboard()["panels"] for target in panel.get("targets", ())}
    for what in LAUNCHING:
        name, _ = named(Figure(what, "stage 2", 1.0, 3, 0.0, "here cuda:0"), "it")
        assert f'ray_{name}{{run=~"$run"}}' in asked
    assert named(Figure("measured speed-up", "run", 1.0, 3, 0.0), "it") == (
        "localpipe_run_measured_speed_up",
        {"run": "it"},
    )


def test_all_that_listens_listens_to_this_machine_alone() -> None:
    services = yaml.safe_load((ROOT / "docker" / "compose.monitoring.yaml").read_text())["services"]
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())]
    files = [ROOT / "docker" / name for name in mounted if name.startswith("./")]
    assert files and all(file.is_file() for file in files)


@contextmanager
def prometheus(config: Path, folder: Path) -> Iterator[str]:
    """A real one with that configuration; gives its address."""
    assert PROMETHEUS is not None, "skipped without"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = [f"--config.file={config}", f"--storage.tsdb.path={folder}", f"--web.listen-address={address}"]
    process = subprocess.Popen([PROMETHEUS, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def asked(url: str, query: str) -> list[dict[str, Any]]:
    """The series that a query finds now."""
    whole = f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(whole, timeout=10) as answer:  # noqa: S310 (its own address)
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return found
    except OSError:  # it is not up yet
        return []


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(PROMETHEUS is None, reason="needs Prometheus")
def test_prometheus_has_every_figure_of_a_real_run_that_asks_for_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path("/tmp") / f"lp{time.time_ns() % 10**8}"  # noqa: S108 (short: Ray's sockets lie in it)
    monkeypatch.setenv("RAY_TMPDIR", str(place))
    monkeypatch.setenv("RAY_enable_metrics_collection", "0")  # as an earlier run of the process has left it
    run = tmp_path / "the-run"
    flags = [
        "--dim",
        "16",
        "--heads",
        "2",
        "--depth",
        "4",
        "--epochs",
        "100000",
        "--readout",
        "online",
        "--stages",
        "2",
    ]
    launched = launch(tmp_path, "cff-vit", *flags, "--dashboard", "--run-dir", str(run))
    try:
        launched.wait_for("epoch 2/")
        found = re.search(r"Ray's dashboard: (http://127\.0\.0\.1:\d+)", launched.text())
        assert found is not None, launched.text()
        with urllib.request.urlopen(found[1], timeout=60) as page:  # noqa: S310 (the address that it printed)
            assert b"Ray Dashboard" in page.read()
        with pytest.raises(urllib.error.HTTPError, match="401"):  # without the token
            urllib.request.urlopen(f"{found[1]}/api/jobs/", timeout=60)  # noqa: S310 (as above)
        config = tmp_path / "prometheus.yml"
        (folder,) = place.glob("lp-*")
        ours = (_FOLDER / "prometheus.yml").read_text().replace("/tmp/ray/", f"{folder}/ray/")  # noqa: S108
        config.write_text(ours.replace("_interval: 5s", "_interval: 1s").replace("interval: 10s", "interval: 1s"))
        with prometheus(config, tmp_path / "series") as url:
            end = time.monotonic() + 200
            missing = set(queries())
            while missing and time.monotonic() < end:
                missing = {query for query in missing if not asked(url, query)}
                time.sleep(1)
            assert not missing
            stages = asked(url, "ray_localpipe_stage_utilisation")
            told = [(one["metric"]["run"], one["metric"]["stage"]) for one in stages]
            assert sorted(told) == [("the-run", "1"), ("the-run", "2")]
            assert all(one["metric"]["device"].endswith(" cpu") for one in stages)
            assert all(0 < float(one["value"][1]) <= 1 for one in stages)
    finally:
        launched.process.terminate()
        launched.finish()
        launched.assert_nothing_left()
        shutil.rmtree(place, ignore_errors=True)
