"""`launch bench transport`: real channels between real processes, and honest arithmetic on what they did."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from launch.bench.protocol import CannotRunError
from launch.bench.transport import Cost, conclude, cost_of, rotated, transport
from launch.bench.transport_ways import End, Processes, Turn, channel
from pipeline.errors import UserError


@pytest.mark.exhaustive
@pytest.mark.slow
def test_every_channel_of_this_machine_is_measured_beside_a_copy_and_a_socket(tmp_path: Path) -> None:
    console = Console(width=120, record=True)
    arguments = ["--sizes", "0", "0.01", "--seconds", "0.1", "--rounds", "2", "--out", str(tmp_path / "out")]
    transport(arguments, console)
    report = json.loads((tmp_path / "out" / "transport.json").read_text())
    there = {"read", "copy", "local", "socket", "gloo", *(["shm"] if sys.platform == "linux" else [])}
    there |= {"nccl"} if torch.cuda.device_count() > 1 else set()
    assert {(cost["way"], cost["bytes"]) for cost in report["costs"]} == {(w, b) for w in there for b in (0, 10_000)}
    assert all(cost["us"] > 0 for cost in report["costs"])
    assert all((cost["mb_per_second"] is None) == (cost["bytes"] == 0) for cost in report["costs"])
    assert all(len(measured["turns"]) == 2 for measured in report["rounds"])
    assert all(turn["messages"] > 0 for measured in report["rounds"] for turn in measured["turns"])
    assert set(report["absent"]) == {"gloo", "shm", "nccl"} - there
    said = " ".join(console.export_text().split())
    assert report["conclusion"] in said
    assert all(reason in said for reason in report["absent"].values())


def turn(messages: int, seconds: float, *cpu: float) -> Turn:
    return Turn(messages, seconds, cpu)


def test_costs_are_medians_over_rounds() -> None:
    cost = cost_of("gloo", 2_000_000, [turn(10, 1.0, 0.2, 0.4), turn(10, 2.0, 0.6, 0.8), turn(40, 1.0, 0.4, 0.4)])
    assert (cost.mb_per_second, cost.slowest, cost.fastest) == (20.0, 10.0, 80.0)
    assert cost.us == pytest.approx(100_000)
    assert cost.cpu_us == pytest.approx(60_000)
    assert cost.cpu_per_gb == pytest.approx((10.0, 20.0))


def test_a_token_has_no_speed_in_bytes() -> None:
    cost = cost_of("shm", 0, [turn(100, 0.5, 0.1, 0.1)])
    assert (cost.mb_per_second, cost.slowest, cost.fastest, cost.cpu_per_gb) == (None, None, None, None)
    assert (cost.us, cost.cpu_us) == pytest.approx((5000, 2000))


def costs(gloo: float, shm: float) -> list[Cost]:
    """Of one message of 64 MB, in ms of CPU time. The small ones point the other way."""
    large = [
        Cost(way=way, bytes=64_000_000, us=1e3 * ms, cpu_us=1e3 * ms) for way, ms in (("gloo", gloo), ("shm", shm))
    ]
    small = [Cost(way=way, bytes=0, us=1e3 / ms, cpu_us=1e3 / ms) for way, ms in (("gloo", gloo), ("shm", shm))]
    return [*small, *large, *(Cost(way=way, bytes=64_000_000, us=3e3, cpu_us=2e3) for way in ("copy", "socket"))]


def test_the_sentence_names_the_channel_that_takes_the_least_of_the_stages_time() -> None:
    assert "use --transport shm, which auto takes: a message of 64 MB takes 5 ms" in conclude(costs(gloo=20, shm=5))
    assert "use --transport gloo: a message of 64 MB takes 5 ms" in conclude(costs(gloo=5, shm=20))


def test_rounds_begin_with_another_way_each() -> None:
    assert [rotated("abc", number) for number in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="NCCL works here")
def test_nccl_without_two_gpus_is_left_out_with_its_reason() -> None:
    with pytest.raises(CannotRunError, match="nccl needs 2 GPUs, this machine has"), channel("nccl", [0], depth=2):
        pass


class _Waits(End):
    def turn(self, index: int, until: float) -> int:
        time.sleep(600)
        return 0


class _Breaks(End):
    def turn(self, index: int, until: float) -> int:
        raise ConnectionResetError("the sender is gone")


@pytest.mark.slow
def test_an_end_that_fails_is_named_and_the_other_one_does_not_wait_for_it() -> None:
    with (
        Processes("socket", [{"socket": _Waits}, {"socket": _Breaks}]) as processes,
        pytest.raises(CannotRunError, match="socket, end 2 failed: ConnectionResetError: the sender is gone"),
    ):
        processes.turn("socket", 0, 0.1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sizes", "-1"], "--sizes -1: give MB, from 0"),
        (["--sizes", "1e9"], "--sizes 1e+09: give MB"),
        (["--seconds", "0"], "--seconds 0: must be above 0"),
        (["--rounds", "0"], "--rounds 0: give at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError) as refusal:
        transport(arguments, Console())
    assert str(refusal.value).startswith(said)
