"""The planner: what layers cost, what a pipeline of them would do, and `--partition balanced`, which rests on it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from launch import balance
from launch.balance import resolve_measured, take_profile
from launch.cli import main
from launch.plan import measure
from launch.plan.report import verdict
from pipeline.config import build
from pipeline.config.build import build_run
from pipeline.config.devices import Devices
from pipeline.config.partition import partition, sized
from pipeline.config.settings import Settings
from pipeline.errors import UserError
from pipeline.layers.layer import LocalLayer
from pipeline.layers.shared_state import FixedState
from pipeline.methods import CffSettings, CflSettings, MethodConfig
from pipeline.nets import VitSettings
from pipeline.planning.bottleneck import Limit
from pipeline.planning.costs import LayerCost, Profile
from pipeline.planning.predict import Planner, Site, listed, moves, shown
from pipeline.planning.profile import profile, profile_here
from pipeline.runtime.edges import edge_bytes
from pipeline.runtime.threads import train_threads
from pipeline.versions import Versions
from tests.conftest import make_run
from tests.support import CPU, changed, tiny_spec
from tests.test_equality import assert_same, serial


def cost(seconds: float, **values: Any) -> LayerCost:
    """A layer that takes a third of its time until it can send."""
    sizes = {"bytes_out": 1000, "weight_bytes": 10, "optimizer_bytes": 20, "activation_bytes": 300}
    phases = {"forward": seconds / 3, "loss": 0.0, "backward": seconds / 2, "update": seconds / 6}
    return LayerCost(**(phases | sizes | values))


def planner(seconds: Sequence[float], *, method: MethodConfig | None = None, **values: Any) -> Planner:
    """A plan for layers that take so long, with nothing else that takes time."""
    costs = tuple(cost(s) for s in seconds)
    spec = tiny_spec(
        net=VitSettings(dim=8, heads=2, depth=len(seconds), patch=2),
        method=method.resolve([8] * len(seconds)) if method is not None else None,
    )
    quiet = Profile(
        alone=costs, busy=costs, num_busy=2, jitter=0.0, feed_seconds=0.0, feed_bytes=50, copy_bandwidth=1e12
    )
    return Planner(spec, replace(quiet, **values))


TWO = Site(devices=2)


def test_a_layer_on_the_wrong_side_of_a_boundary_is_found_by_simulation() -> None:
    """2 | 4 s: with layer 3 in the first stage it is 3 | 3."""
    plan = planner([1, 1, 1, 3])
    best = plan.changes(partition(4, 2), TWO)[0]
    assert best.what == "layer 3 to stage 1 (`partition` 3 1)"
    assert best.gain == pytest.approx(1 / 3, rel=1e-3)
    assert plan.balanced(2) == sized([3, 1])
    said = verdict(plan.predict(partition(4, 2), TWO), plan.changes(partition(4, 2), TWO))
    assert "layers 1-2 | 3-4" in said
    assert "limited by stage 2" in said
    assert "layer 3 to stage 1 (--partition 3 1) would give +33%" in said


def test_where_nothing_helps_it_says_so() -> None:
    plan = planner([1, 1, 1, 1])
    assert plan.changes(partition(4, 2), TWO) == []
    assert "no other partition" in verdict(plan.predict(partition(4, 2), TWO), [])


def test_a_slow_feeder_asks_for_another() -> None:
    plan = planner([1, 1, 1, 1], feed_seconds=3.0)
    assert plan.predict(partition(4, 2), Site(devices=4)).limit == Limit("feeder")
    best = plan.changes(partition(4, 2), Site(devices=4))[0]
    assert best.what == "`feeders` 2"
    assert best.gain == pytest.approx(1 / 2, rel=1e-3)


def test_a_slow_link_asks_for_fewer_bytes() -> None:
    plan, slow = planner([1, 1]), Site(devices=2, link=1000 / 4)  # bytes per second: 4 s a message
    prediction = plan.predict(partition(2, 2), slow)
    assert prediction.limit == Limit("link", 0)
    assert prediction.images_per_second == pytest.approx(6 / 4, rel=1e-3)
    best = plan.changes(partition(2, 2), slow)[0]
    assert best.what == "`transfer_dtype` bf16"
    assert best.gain == pytest.approx(1, rel=1e-3)


def test_a_long_way_asks_for_the_least_depth_that_hides_it() -> None:
    """2 s a step of either stage, 7 s one way: 8 buffers are away for 16 s, and 6 lose a quarter."""
    plan, far = planner([2, 2]), Site(devices=2, link=1e12, delay=7.0)
    assert plan.predict(partition(2, 2), far).limit == Limit("link", 0)
    assert plan.choose_depth(partition(2, 2), far) == 8
    assert plan.choose_depth(partition(2, 2), Site(devices=2)) == 2
    assert plan.rate(partition(2, 2), far, depth=2) == pytest.approx(6 * 3 / 16, rel=1e-2)
    best = plan.changes(partition(2, 2), far)[0]
    assert best.what == "`queue_depth` 8"


@pytest.mark.parametrize("delay", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("paced", [False, True])
def test_the_depth_that_is_chosen_hides_the_way_and_one_less_does_not(delay: float, paced: bool) -> None:
    plan, site = planner([0.04, 0.045, 0.055]), Site(devices=3, link=1e12, delay=delay, paced=paced)
    stages, ideal = partition(3, 3), 6 / 0.055
    depth = plan.choose_depth(stages, site)
    assert plan.rate(stages, site, depth=depth) >= 0.95 * ideal
    assert depth == 2 or plan.rate(stages, site, depth=depth // 2) < 0.95 * ideal


def test_a_tcp_that_paces_asks_for_a_deeper_queue() -> None:
    """1 s a step, 1 s one way: 3 buffers are away for 3 s, and with their share of 0.69 s for 3.23 s."""
    plan, far = planner([1, 1]), Site(devices=2, link=1e12, delay=1.0)
    assert plan.choose_depth(partition(2, 2), far) == 2
    assert plan.choose_depth(partition(2, 2), replace(far, paced=True)) == 3
    assert plan.rate(partition(2, 2), replace(far, paced=True), depth=2) == pytest.approx(6 * 3 / 3.231, rel=1e-2)


def test_steps_that_vary_ask_for_a_deeper_queue() -> None:
    plan = planner([1, 1, 1, 1], jitter=0.3)
    assert "`queue_depth` 4" in [change.what for change in plan.changes(partition(4, 4), Site(devices=8))]


@dataclass(frozen=True, kw_only=True)
class Sharing(CffSettings):
    """A method that shares a state which is no label embedding."""

    def shared_versions(self, num_layers: int, steps_per_epoch: int) -> Versions:
        return Versions(mode="shared-mean", lag=0, exact=True, num_layers=num_layers, steps_per_epoch=steps_per_epoch)


def test_any_shared_state_is_waited_for() -> None:
    """One batch at a time, as the versions say, and the advice names no setting that the method does not have."""
    plan = planner([1, 1, 1], method=Sharing())
    prediction = plan.predict(partition(3, 3), Site(devices=3))
    assert prediction.limit == Limit("shared") and str(prediction.limit) == "the state that the layers share"
    alone = planner([1, 1, 1]).predict(partition(3, 3), Site(devices=3))
    assert prediction.images_per_second < 0.9 * alone.images_per_second
    best = plan.changes(partition(3, 3), Site(devices=3))[0]
    assert best.what == "a lag of 0 for the state that the layers share"
    assert best.gain == pytest.approx(alone.images_per_second / prediction.images_per_second - 1, rel=0.1)


def test_exact_label_embeddings_ask_for_lag() -> None:
    method = CflSettings()
    exact = replace(method, embedding=replace(method.embedding, embedding_sync="exact"))
    plan = planner([1, 1, 1], method=exact)
    assert plan.predict(partition(3, 3), Site(devices=3)).limit == Limit("shared")
    best = plan.changes(partition(3, 3), Site(devices=3))[0]
    assert best.what == "`embedding_sync` lagged `embedding_lag` 1"


@pytest.mark.parametrize(
    ("seconds", "devices", "sizes"),
    [
        ([4, 1, 1, 1, 1], 8, [1, 4]),  # the first layer alone dictates: a third stage gains nothing
        ([1, 1, 1, 1], 3, [2, 2]),  # 1, 1, 2 is no faster
        ([1, 1, 1, 1], 4, [1, 1, 1, 1]),
        ([1, 1, 1], 1, [3]),
    ],
)
def test_the_fewest_stages_are_chosen_that_are_as_fast(seconds: list[float], devices: int, sizes: list[int]) -> None:
    assert planner(seconds).choose(Site(devices=devices)) == sized(sizes)


def test_prediction_by_hand() -> None:
    """Stages of 2 and 1 s, of which the first sends after 1 + 1/3 s; 8 steps of 6 images."""
    prediction = planner([1, 1, 1]).predict(sized([2, 1]), Site(devices=2))
    assert prediction.images_per_second == pytest.approx(6 / 2, rel=1e-3)
    assert prediction.speedup == pytest.approx(1.5, rel=1e-3)
    assert prediction.ideal == pytest.approx(3 / 2)  # of the full pipeline, as the speed-up
    assert prediction.fill == pytest.approx(16 / (16 + 1 / 3), rel=1e-3)
    assert prediction.utilisation == pytest.approx((1, 0.5), rel=1e-3)
    assert prediction.limit == Limit("stage", 0)
    # Weights and gradients, optimizer; one layer's activations; three buffers before each stage, one behind the first.
    assert prediction.memory == (2 * 40 + 300 + 3 * 50 + 1000, 40 + 300 + 3 * 1000)


def test_what_cuda_graphs_keep_at_its_place_is_part_of_a_stages_memory() -> None:
    """What each layer takes, the first one pixels as float32, and what it passes on."""
    plan = planner([1, 1, 1])
    without = plan.predict(sized([2, 1]), Site(devices=2)).memory
    plan._spec = changed(replace(plan._spec, device="cuda"), "pipeline", data_on="host")
    with_graphs = plan.predict(sized([2, 1]), Site(devices=2)).memory
    assert [more - less for more, less in zip(with_graphs, without, strict=True)] == [4 * 50 + 3 * 1000, 2 * 1000]


def test_images_that_stay_on_a_gpu_are_part_of_the_first_stages_memory() -> None:
    plan = planner([1, 1, 1])
    memory = {}
    for where in ("host", "auto"):
        plan._spec = changed(replace(plan._spec, device="cuda"), "pipeline", data_on=where)
        memory[where] = plan.predict(sized([2, 1]), Site(devices=2)).memory
    assert [more - less for more, less in zip(memory["auto"], memory["host"], strict=True)] == [(24 + 6) * 8 * 8, 0]


def test_more_stages_than_devices_share_them() -> None:
    assert planner([1] * 4).rate(partition(4, 4), TWO) == pytest.approx(6 * 2 / 4, rel=0.01)


def test_every_single_move_of_a_layer() -> None:
    assert moves(sized([1, 2, 2])) == [
        ("layer 2 to stage 1 (`partition` 2 1 2)", sized([2, 1, 2])),
        ("layer 4 to stage 2 (`partition` 1 3 1)", sized([1, 3, 1])),
        ("layer 3 to stage 3 (`partition` 1 1 3)", sized([1, 1, 3])),
    ]
    assert moves(sized([3])) == []
    assert (shown(sized([2, 1, 2])), listed(sized([2, 1, 2]))) == ("1-2 | 3 | 4-5", "2 1 2")


# ---------------------------------------------------------------------------------------------------------------------
# Profiles of real layers


@pytest.mark.parametrize("method", [None, CflSettings().resolve([8, 8, 8])])
def test_a_profile_has_every_phase_and_size(method: MethodConfig | None) -> None:
    spec = tiny_spec(method=method, stages=3)
    costs = profile(spec, CPU, seconds=0.1).costs
    assert [one.enter > 0 for one in costs] == [True, False, False]
    for one in costs:
        assert min(one.forward, one.loss, one.backward, one.update, one.activation_bytes) > 0
        assert one.seconds == pytest.approx(one.before + one.after)
    for index, one in enumerate(costs):
        layer = LocalLayer(spec, index, CPU, FixedState(torch.zeros(3, 8)))
        trained = list(layer.net.parameters())
        weights = sum(parameter.nbytes for parameter in trained)
        assert one.weight_bytes == weights + sum(parameter.nbytes for parameter in layer.readout.parameters())
        # AdamW: two moments, and a step counter for each parameter.
        assert one.optimizer_bytes == 2 * weights + 4 * len(trained)
    assert [one.bytes_out for one in costs[:-1]] == edge_bytes(spec)[1:]


def test_an_online_readouts_optimizer_counts() -> None:
    after, online = (profile(tiny_spec(readout=mode), CPU, seconds=0.1).costs[0] for mode in ("after", "online"))
    readout = list(LocalLayer(tiny_spec(), 0, CPU).readout.parameters())
    moments = 2 * sum(parameter.nbytes for parameter in readout) + 4 * len(readout)
    assert online.optimizer_bytes - after.optimizer_bytes == moments


def test_half_the_images_keep_half_the_activations() -> None:
    whole, half = (profile(tiny_spec(batch_size=size), CPU, seconds=0.1).costs[1] for size in (64, 32))
    assert whole.activation_bytes == pytest.approx(2 * half.activation_bytes, rel=0.1)


def test_what_goes_wrong_while_layers_are_timed_is_told() -> None:
    with pytest.raises(UserError, match="/nowhere"):
        profile_here(tiny_spec(), 2, seconds=0.1)


def test_layers_are_timed_by_tasks_on_a_cluster_that_is_joined(small_settings: Settings, cluster: None) -> None:
    pipe = replace(small_settings.pipeline, executor="ray", ray_address="auto")
    settings = replace(small_settings, pipeline=pipe)
    dataset = build.open_data(settings)
    spec, found = take_profile(build.resolve(settings, dataset), dataset, Devices("cpu", 2))
    assert spec.num_stages == 1
    assert (found.num_busy, len(found.busy)) == (2, 4)
    assert found.feed_seconds > 0


# ---------------------------------------------------------------------------------------------------------------------
# --partition


def divided(settings: Settings, *sizes: int) -> Settings:
    return replace(settings, pipeline=replace(settings.pipeline, partition=sizes, stages="auto"))


@pytest.mark.parametrize("sizes", [(1, 3), (3, 1), (1, 2, 1)])
def test_any_partition_gives_the_serial_bits(small_settings: Settings, sizes: tuple[int, ...]) -> None:
    pipe = replace(divided(small_settings, *sizes).pipeline, executor="threads")
    spec, dataset = make_run(replace(small_settings, pipeline=pipe))
    assert [len(layers) for layers in spec.stages] == list(sizes)
    assert_same(train_threads(spec, dataset), serial(small_settings))


def test_a_balanced_run_has_its_sizes_in_its_settings_and_the_serial_bits(small_settings: Settings) -> None:
    pipe = replace(small_settings.pipeline, executor="threads", partition="balanced", stages=2)
    asked = replace(small_settings, pipeline=pipe)
    dataset = build.open_data(asked)
    console = Console(record=True, width=200)
    settings = resolve_measured(build.resolve(asked, dataset), dataset, Devices("cpu", 2), console)
    sizes = settings.pipeline.partition
    assert isinstance(sizes, tuple)
    assert (sum(sizes), len(sizes), settings.pipeline.stages) == (4, 2, 2)
    assert f"--partition {sizes[0]} {sizes[1]}" in console.export_text()
    spec = build_run(settings, Devices("cpu", 2), dataset=dataset)
    assert spec.settings.pipeline.partition == sizes
    assert_same(train_threads(spec, dataset), serial(small_settings))


@pytest.mark.parametrize(
    ("values", "devices", "sizes"),
    [
        ({"executor": "serial"}, 2, (4,)),
        ({"executor": "threads"}, 1, (4,)),
        ({"executor": "threads", "stages": 4}, 2, (1, 1, 1, 1)),
    ],
)
def test_where_there_is_but_one_way_nothing_is_timed(
    small_settings: Settings, values: dict[str, Any], devices: int, sizes: tuple[int, ...]
) -> None:
    asked = replace(small_settings, pipeline=replace(small_settings.pipeline, partition="balanced", **values))
    dataset = build.open_data(asked)
    console = Console(record=True)
    settings = resolve_measured(build.resolve(asked, dataset), dataset, Devices("cpu", devices), console)
    assert settings.pipeline.partition == sizes
    assert not console.export_text()


@pytest.mark.parametrize(("delay", "said"), [(0.05, "messages between hosts are 50 ms under way"), (0.0, "no message")])
def test_auto_takes_the_depth_that_is_chosen_and_says_which(
    small_settings: Settings, delay: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, site = planner([0.02] * 4), Site(devices=2, link=1e12, delay=delay)
    monkeypatch.setattr(balance, "measured_site", lambda *_: site)
    monkeypatch.setattr(balance, "take_profile", lambda *_: (plan._spec, plan._profile))
    pipe = replace(small_settings.pipeline, executor="threads", queue_depth="auto", stages=2)
    asked = replace(small_settings, pipeline=pipe)
    dataset, console = build.open_data(asked), Console(record=True, width=200)
    settings = resolve_measured(build.resolve(asked, dataset), dataset, Devices("cpu", 2), console)
    depth = plan.choose_depth(partition(4, 2), site)
    assert settings.pipeline.queue_depth == depth and (depth > 2) is (delay > 0)
    assert re.search(rf"{said}.*: --queue-depth {depth}\b", console.export_text())


def test_other_partitions_stay_as_they_are(small_settings: Settings) -> None:
    dataset = build.open_data(small_settings)
    for settings in (small_settings, divided(small_settings, 1, 3)):
        assert resolve_measured(settings, dataset, Devices("cpu", 2), Console()) is settings


# ---------------------------------------------------------------------------------------------------------------------
# The command

_SMALL = ["--dim", "16", "--heads", "2", "--device", "cpu"]


@pytest.mark.slow
@pytest.mark.alone
def test_plan_prints_a_table_and_writes_every_figure(tmp_path: Path, capsys: Any) -> None:
    assert main(["plan", "cff-vit", *_SMALL, "--stages", "2", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for heading in ("forward", "backward", "optimizer", "images/s", "fill", "limited by"):
        assert heading in said
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert len(plan["profile"]["busy"]) == len(plan["profile"]["alone"]) == 4
    assert [row["devices"] for row in plan["predictions"]] == [1, 2, 3, 4, 8, 16, 32, 64]
    assert [len(row["stages"]) for row in plan["predictions"]] == [1, 2, 3, 4, 4, 4, 4, 4]
    rates = [row["images_per_second"] for row in plan["predictions"]]
    for row in plan["predictions"]:
        assert f"{row['images_per_second']:,.0f}" in said
        assert [layer for stage in row["stages"] for layer in stage] == [1, 2, 3, 4]
        assert 0 < min(row["utilisation"]) <= max(row["utilisation"]) <= 1 + 1e-9
        assert 0 < row["fill"] <= 1
    assert plan["predictions"][0]["speedup"] == pytest.approx(1)
    assert rates[3] == pytest.approx(rates[-1], rel=0.1)  # no stage more; the feeder has a core to itself
    assert len(plan["launched"]["stages"]) == 2
    assert f"{plan['launched']['images_per_second']:,.0f} images/s, limited by {plan['launched']['limit']}" in said


@pytest.mark.alone
def test_the_real_pipeline_runs_beside_its_prediction(
    small_settings: Settings, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "_ROUND", 0.1)
    spec, dataset = make_run(small_settings, stages=1)
    settings = build.resolve(replace(small_settings, pipeline=replace(small_settings.pipeline, stages="auto")), dataset)
    plan = Planner(spec, replace(planner([0.01] * 4)._profile, feed_seconds=1e-4))
    predicted = [plan.predict(partition(4, 2), TWO)]
    (found,) = measure.measure(settings, dataset, Devices("cpu", 2), predicted, Console(quiet=True))
    assert len(found.rounds) == 3
    assert min(found.rounds) <= found.images_per_second <= max(found.rounds)
    assert found.difference == pytest.approx(predicted[0].images_per_second / found.images_per_second - 1)
    assert len(found.utilisation) == 2
    assert 0 < min(found.utilisation) <= max(found.utilisation) <= 1


MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "no preset": (["plan"], ["needs a preset", "cff-vit"]),
    "unknown preset": (["plan", "cff-vitt"], ["cff-vitt", "Did you mean 'cff-vit'"]),
    "more stages than layers": (["plan", "cff-vit", "--stages", "9"], ["--stages 9", "4 layers"]),
    "no bandwidth": (["plan", "cff-vit", "--link", "-1"], ["--link -1", "above 0"]),
    "a delay below zero": (["plan", "cff-vit", "--delay", "-1"], ["--delay -1", "at least 0"]),
    "no device": (["plan", "cff-vit", "--devices", "2", "0"], ["--devices 2 0", "at least 1"]),
    "a file for a folder": (["plan", "cff-vit", "--out", __file__], ["--out", "is a file"]),
    "one piece": (["plan", "cff-vit", "--baseline", "bp"], ["--baseline bp", "nothing to plan"]),
    "sizes that miss a layer": (["cff-vit", "--partition", "1", "2"], ["--partition 1 2", "3 layers", "has 4"]),
    "an empty stage": (["cff-vit", "--partition", "0", "4"], ["--partition 0 4", "at least 1"]),
    "sizes and another number of stages": (
        ["cff-vit", "--partition", "2", "2", "--stages", "3"],
        ["--partition 2 2", "--stages asks for 3", "--partition even"],
    ),
    "sizes of a serial run": (
        ["cff-vit", "--partition", "2", "2", "--executor", "serial"],
        ["--partition 2 2", "serial"],
    ),
    "sizes of a net that is one piece": (
        ["cff-vit", "--partition", "2", "2", "--baseline", "bp"],
        ["--partition 2 2", "--baseline bp"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    arguments, said = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert all(part in captured.err for part in said), captured.err
    assert not list(tmp_path.iterdir())
