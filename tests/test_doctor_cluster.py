"""`launch doctor` on a cluster: every host's lacks by its name, what differs between hosts, and what channels do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from launch.doctor.checks import Finding
from launch.doctor.cluster import Cluster, check_cluster
from pipeline.telemetry.offset import Offset
from tests.test_doctor import NO_GPU
from tests.test_software import ONE
from workers.channels import Channel, ChannelFigures
from workers.hosts import Host

A, B, C = (
    Host(node=f"node-{name}", name=name, address=f"10.0.0.{number}", port=1, cores=2, gpus=0, memory_gib=8.0)
    for number, name in enumerate("abc", start=1)
)
QUICK = ChannelFigures(transport="gloo", bytes_per_second=1.2e9, delay=2e-4, resent=0.0)
WELL = Cluster(
    hosts=[A, B, C],
    machines=dict.fromkeys((A, B, C), NO_GPU),
    software=dict.fromkeys((A, B, C), ONE),
    silent={},
    clocks={B: Offset(2e-4, 1e-4), C: Offset(-3e-4, 1e-4)},
    channels=[Channel(sender=A, receiver=B, figures=QUICK), Channel(sender=B, receiver=C, figures=QUICK)],
)


def found(name: str, **values: Any) -> Finding:
    """The finding of that name in a cluster that is well but for these values."""
    return next(one for one in check_cluster(replace(WELL, **values)) if one.name == name)


def with_figures(**values: Any) -> list[Channel]:
    return [replace(WELL.channels[0], figures=replace(QUICK, **values))]


def test_a_cluster_that_lacks_nothing_is_ok_and_says_once_what_hosts_share() -> None:
    findings = check_cluster(WELL)
    assert {one.status for one in findings} == {"ok"}
    assert len({one.name for one in findings}) == len(findings)
    assert found("channel a → b").text == "gloo, 1,200 MB/s, 200 µs, 0.00% lost and sent again"


def test_what_one_host_lacks_is_said_by_its_name() -> None:
    machines = WELL.machines | {B: replace(NO_GPU, open_files=256, shared_memory=64 << 20)}
    assert found("open files on b", machines=machines).status == "warning"
    assert "--shm-size" in found("shared memory on b", machines=machines).advice
    assert found("shared memory on a, c", machines=machines).status == "ok"


@pytest.mark.parametrize(
    ("values", "name", "status", "says"),
    [
        ({"silent": {C: "it did not answer in time"}}, "host c", "problem", "ray status"),
        (
            {"software": WELL.software | {B: ONE | {"torch": "2.12.0"}}},
            "same software",
            "problem",
            "same torch on every",
        ),
        ({"clocks": {B: Offset(5.0, 0.01)}}, "clock on b", "warning", "chrony"),
        ({"channels": with_figures(bytes_per_second=5e7)}, "channel a → b", "warning", "--transfer-dtype bf16"),
        ({"channels": with_figures(delay=0.05)}, "channel a → b", "warning", "--queue-depth auto"),
        ({"channels": with_figures(resent=0.02)}, "channel a → b", "warning", "loses packets"),
        (
            {"channels": [Channel(sender=A, receiver=B, figures=None, failure="a → b: the neighbour is gone")]},
            "channel a → b",
            "problem",
            "10.0.0.1 and 10.0.0.2 reach each other",
        ),
        ({"absent": {C: "no device is free"}}, "channel on c", "warning", "Another run"),
    ],
)
def test_each_trouble_comes_with_its_remedy(values: dict[str, Any], name: str, status: str, says: str) -> None:
    finding = found(name, **values)
    assert finding.status == status
    assert says in finding.advice


def test_data_that_a_first_stage_elsewhere_would_lack_are_said() -> None:
    """The launching host has no core for a stage, so the first one is on the next."""
    head = replace(A, cores=0)
    values = {"hosts": [head, B], "machines": {head: NO_GPU, B: replace(NO_GPU, prepared=("digits",))}}
    finding = found("data sets on b", software={head: ONE, B: ONE}, **values)
    assert "cifar10 not prepared" in finding.text and "keep a feeder" in finding.advice


def test_a_real_cluster_is_looked_at(cluster: None, tmp_path: Path, capsys: Any) -> None:
    """The tests' own, of one host: the channel within it is shared memory."""
    file = tmp_path / "doctor.json"
    main(["doctor", "--address", "auto", "--json", str(file)])
    values = json.loads(file.read_text())
    (host,), (channel,) = values["hosts"], values["channels"]
    assert host["software"]["code"] and host["machine"]["cores"] >= 1 and host["silent"] is None
    assert channel["figures"]["transport"] == "shm" and channel["figures"]["bytes_per_second"] > 0
    assert f"channel within {host['name']}: shm, " in capsys.readouterr().out


def test_an_address_where_no_cluster_is_gives_one_sentence(capsys: Any) -> None:
    assert main(["doctor", "--address", "127.0.0.1:9"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: The Ray cluster at 127.0.0.1:9 cannot be reached") and said.count("\n") == 1
    assert main(["doctor", "--address", "127.0.0.1:9", "--gpu"]) == 2
