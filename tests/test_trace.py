"""A trace shows what every stage did in some steps, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from launch import Run, train
from pipeline.config.settings import Settings
from pipeline.telemetry.clock import Clock, TimeCategory
from pipeline.telemetry.trace import Tracer
from tests.conftest import make_run

_SMALL: dict[str, Any] = {
    "data": "digits",
    "executor": "threads",
    "dim": 16,
    "heads": 2,
    "depth": 3,
    "epochs": 2,
    "readout_epochs": 1,
    "quiet": True,
}
_STEPS = range(21, 29)  # the second epoch's first eight, counted from 1: digits have 20 steps of 64 images

Event = Mapping[str, Any]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """One with a trace of eight steps, one without."""
    folder = tmp_path_factory.mktemp("runs")
    traced = train("cff-vit", **_SMALL, stages=2, trace=8, checkpoint_every="7", run_dir=folder / "traced")
    return traced, train("cff-vit", **_SMALL, stages=2, run_dir=folder / "plain")


@pytest.fixture(scope="module")
def events(runs: tuple[Run, Run]) -> list[Event]:
    found: list[Event] = json.loads((runs[0].folder / "trace.json").read_text())["traceEvents"]
    return found


def test_a_trace_changes_no_bit_and_is_there_where_it_was_asked_for(runs: tuple[Run, Run]) -> None:
    traced, plain = (run.folder for run in runs)
    for name in ("model.safetensors", "last.safetensors", "steps.safetensors", "predictions.csv"):
        assert (traced / name).read_bytes() == (plain / name).read_bytes()
    assert not (plain / "trace.json").exists()


def test_each_stage_has_a_row_with_the_steps_and_in_them_what_each_layer_did(events: list[Event]) -> None:
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {0: "stage 1, layer 1", 1: "stage 2, layers 2–3"}
    for stage, layers in ((0, (1,)), (1, (2, 3))):
        slices = [event for event in events if event["ph"] == "X" and event["pid"] == stage]
        steps = [event for event in slices if event["cat"] == "step"]
        assert [event["name"] for event in steps] == [f"batch {number}" for number in _STEPS]
        for step in steps:
            inside = [event for event in slices if event["args"] == step["args"] and "layer" in event["name"]]
            wanted = [
                f"{what}, layer {n}" for n in layers for what in ("forward", "send", "loss", "backward", "update")
            ]
            assert [event["name"] for event in inside] == wanted
            for before, after in zip([step, *inside], inside, strict=False):
                begin = before["ts"] if before is step else before["ts"] + before["dur"]
                assert after["ts"] >= begin - 0.01
            assert inside[-1]["ts"] + inside[-1]["dur"] <= step["ts"] + step["dur"] + 0.01
    assert any(event["name"] == "wait for input" for event in events)
    assert any(event["name"] == "checkpoint" for event in events)


def test_an_arrow_follows_each_batch_to_the_next_stage(events: list[Event]) -> None:
    sent = {event["id"]: event for event in events if event["ph"] == "s"}
    taken = {event["id"]: event for event in events if event["ph"] == "f"}
    assert len(sent) == len(_STEPS) and sent.keys() == taken.keys()
    for number, arrow in sent.items():
        assert (arrow["pid"], taken[number]["pid"]) == (0, 1)
        assert taken[number]["ts"] >= arrow["ts"]


def test_pieces_of_one_wait_are_one_slice() -> None:
    """Whoever reads the clock amid a wait cuts it."""
    clock = Clock()
    tracer = Tracer(clock, range(2))
    tracer.begin(0)
    tracer.end()
    with clock.measure(TimeCategory.WAIT_IN):
        for _ in range(5):
            clock.read()
    assert [(one.name, one.step) for one in tracer.take()] == [("step", 0), ("wait_in", 1)]
    tracer.begin(1)
    tracer.end()
    with clock.measure(TimeCategory.WAIT_IN):
        pass
    assert [one.name for one in tracer.take()] == ["step"], "after its last step it no longer listens"


def test_the_steps_are_those_of_the_run(small_settings: Settings) -> None:
    spec, _ = make_run(small_settings)
    assert len(spec.traced) == 0
    for asked, wanted in ((5, range(40, 45)), (1000, range(40, 80))):
        assert replace(spec, settings=replace(spec.settings, trace=asked)).traced == wanted
