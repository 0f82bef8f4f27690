"""Where time goes, told by a clock that a test winds; what a pass says about a layer, against counting it directly;
which epoch's weights are worth keeping.
"""

from __future__ import annotations

import itertools
import math
import threading
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor

from launch.output.display import Display
from pipeline.config.run_spec import Phase
from pipeline.errors import NonFiniteLossError, RunError
from pipeline.kind import Kind
from pipeline.layers.fisher import WIDEST
from pipeline.layers.tallies import EvaluationTally, TrainTally
from pipeline.nets import VitSettings
from pipeline.runtime.history import History
from pipeline.telemetry import clock as clock_module
from pipeline.telemetry.clock import Clock, TimeBreakdown, TimeCategory
from pipeline.telemetry.reports import LayerReport, PassReport, Status
from tests.support import CPU, changed, tiny_spec

# ---------------------------------------------------------------------------------------------------------------------
# Time


class Hands:
    """The time, as the test sets it."""

    def __init__(self) -> None:
        self.now = 100.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    hands = Hands()
    monkeypatch.setattr(clock_module, "time", SimpleNamespace(perf_counter=lambda: hands.now, time=lambda: hands.now))
    return hands


def spent(account: TimeBreakdown) -> dict[str, float]:
    """What is not zero."""
    return {kind.value: seconds for kind, seconds in account.seconds.items() if seconds}


def test_time_is_accounted_by_kind_and_the_rest_is_other(hands: Hands) -> None:
    clock = Clock()
    for kind, seconds in ((TimeCategory.BUSY, 5.0), (TimeCategory.WAIT_IN, 2.0), (TimeCategory.COPY, 1.0)):
        with clock.measure(kind):
            hands.pass_by(seconds)
        hands.pass_by(0.5)
    account = clock.read()
    assert account.wall == 9.5
    assert spent(account) == {"busy": 5.0, "wait_in": 2.0, "copy": 1.0}
    assert account.other == 1.5
    assert account.utilisation == pytest.approx(5 / 9.5)


def test_what_a_gpu_does_while_its_host_waits_is_busy_alone(hands: Hands) -> None:
    clock = Clock()
    with clock.measure(TimeCategory.COPY):
        hands.pass_by(1)
    with clock.measure(TimeCategory.WAIT_IN):
        hands.pass_by(9)
    clock.credit(TimeCategory.BUSY, 7)
    account = clock.read()
    assert spent(account) == {"busy": 7.0, "wait_in": 2.0, "copy": 1.0}
    assert account.other == 0


def test_time_measured_inside_a_measurement_counts_once(hands: Hands) -> None:
    """A stage sends amid its step: copying and waiting there are not busy."""
    clock = Clock()
    with clock.measure(TimeCategory.BUSY):
        hands.pass_by(3)
        with clock.measure(TimeCategory.WAIT_OUT):
            hands.pass_by(10)
            with clock.measure(TimeCategory.COPY):
                hands.pass_by(0.5)
            hands.pass_by(10)
        hands.pass_by(4)
        with clock.measure(TimeCategory.SYNC):
            hands.pass_by(1)
    assert spent(clock.read()) == {"busy": 7.0, "wait_out": 20.0, "copy": 0.5, "sync": 1.0}
    assert clock.read().other == 0


def test_same_kind_inside_itself_counts_once(hands: Hands) -> None:
    clock = Clock()
    with clock.measure(TimeCategory.BUSY):
        hands.pass_by(1)
        with clock.measure(TimeCategory.BUSY):
            hands.pass_by(2)
    assert spent(clock.read()) == {"busy": 3.0}


def test_measurement_that_ends_in_an_error_still_counts(hands: Hands) -> None:
    clock = Clock()

    def fail_while_waiting() -> None:
        with clock.measure(TimeCategory.BUSY):
            hands.pass_by(1)
            with clock.measure(TimeCategory.WAIT_OUT):
                hands.pass_by(2)
                raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_while_waiting()
    hands.pass_by(4)
    assert spent(clock.read()) == {"busy": 1.0, "wait_out": 2.0}
    assert clock.read().other == 4


steps = st.recursive(
    st.floats(0.125, 8).map(lambda x: round(8 * x) / 8),
    lambda inner: st.tuples(st.sampled_from(TimeCategory), st.lists(inner, max_size=4)),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(steps, max_size=5))
def test_wall_is_the_sum_of_all_kinds_and_other_at_every_moment(plan: list[object]) -> None:
    hands = Hands()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock_module, "time", SimpleNamespace(perf_counter=lambda: hands.now, time=lambda: hands.now))
        clock = Clock()
        expected = dict.fromkeys(TimeCategory, 0.0)
        idle = 0.0

        def carry_out(step: object, kind: TimeCategory | None) -> None:
            nonlocal idle
            if isinstance(step, float):
                hands.pass_by(step)
                if kind is None:
                    idle += step
                else:
                    expected[kind] += step
            else:
                assert isinstance(step, tuple)
                inside, plan = step
                with clock.measure(inside):
                    for inner in plan:
                        carry_out(inner, inside)
            account = clock.read()
            assert account.seconds == expected
            assert account.other == idle
            assert account.wall == hands.now - 100

        for step in plan:
            carry_out(step, None)


def test_lap_amid_a_step_ends_at_that_moment(hands: Hands) -> None:
    """Symptom: the last batch of a pass, in whose middle the report is made, counted in the next pass. A short
    validation after a long training step then had more busy seconds than seconds, and a utilisation above 1.
    """
    clock = Clock()
    with clock.measure(TimeCategory.BUSY):
        hands.pass_by(10)
        training = clock.lap()
        hands.pass_by(1)
    with clock.measure(TimeCategory.BUSY):
        hands.pass_by(0.5)
        validation = clock.lap()
    assert (training.wall, spent(training), training.utilisation) == (10, {"busy": 10.0}, 1)
    assert (validation.wall, spent(validation), validation.utilisation) == (1.5, {"busy": 1.5}, 1)


def test_laps_add_up_to_the_whole(hands: Hands) -> None:
    clock = Clock()
    laps = []
    for seconds in (1.0, 2.0, 4.0):
        with clock.measure(TimeCategory.BUSY):
            hands.pass_by(seconds)
        hands.pass_by(0.25)
        laps.append(clock.lap())
    assert [lap.wall for lap in laps] == [1.25, 2.25, 4.25]
    assert laps[0] + laps[1] + laps[2] == clock.read()


def test_restarted_clock_has_nothing_spent(hands: Hands) -> None:
    clock = Clock()
    with clock.measure(TimeCategory.BUSY):
        hands.pass_by(3)
    clock.lap()
    clock.restart()
    assert (clock.read().wall, spent(clock.read())) == (0, {})
    hands.pass_by(2)
    assert clock.lap().wall == 2


def test_clock_can_be_read_by_another_thread_while_it_measures() -> None:
    clock, stop = Clock(), threading.Event()
    readings: list[TimeBreakdown] = []

    def watch() -> None:
        while not stop.is_set():
            readings.append(clock.read())

    watcher = threading.Thread(target=watch)
    watcher.start()
    while len(readings) < 200:  # however late the other thread begins
        with clock.measure(TimeCategory.BUSY), clock.measure(TimeCategory.COPY):
            pass
    stop.set()
    watcher.join()
    assert all(reading.other > -1e-9 for reading in readings)
    for earlier, later in itertools.pairwise(readings):
        assert all(seconds >= 0 for seconds in (later - earlier).seconds.values())


def account(wall: float, busy: float, wait_in: float) -> TimeBreakdown:
    return TimeBreakdown(
        wall, {**dict.fromkeys(TimeCategory, 0.0), TimeCategory.BUSY: busy, TimeCategory.WAIT_IN: wait_in}
    )


def test_accounts_add_and_subtract_kind_by_kind() -> None:
    assert account(5, 3, 1) + account(2, 1, 0.5) == account(7, 4, 1.5)
    assert account(5, 3, 1) - account(2, 1, 0.5) == account(3, 2, 0.5)
    assert (account(5, 3, 1) + account(2, 1, 0.5)).other == account(5, 3, 1).other + account(2, 1, 0.5).other


def test_account_of_no_time_has_utilisation_0() -> None:
    assert account(0, 0, 0).utilisation == 0


# ---------------------------------------------------------------------------------------------------------------------
# Training passes


def test_training_tally_reports_every_loss_and_their_mean() -> None:
    tally = TrainTally(2)
    for loss in (3.0, 1.0, 2.0):
        tally.add(torch.tensor(loss, requires_grad=True))
    report = tally.report()
    assert report.layer == 2
    assert report.losses.dtype == np.float32
    assert report.losses.tolist() == [3, 1, 2]
    assert report.loss == 2
    assert (report.accuracy, report.top_k, report.fisher, report.predictions) == (None, None, None, None)


def test_pass_in_which_a_layer_does_not_learn_has_no_mean_loss() -> None:
    """Readouts for the last layer only: the others go through the pass, and a mean of nothing is no number."""
    tally = TrainTally(1, readout=True)
    for _ in range(3):
        tally.add(None)
    report = tally.report()
    assert report.losses.shape == (0,)
    assert math.isnan(report.loss)
    assert math.isnan(tally.finite_latest())


def test_version_skew_is_the_mean_over_the_steps() -> None:
    tally = TrainTally(0)
    for skew in (0, 1, 2, 2):
        tally.add(torch.tensor(1.0), skew)
    assert tally.report().version_skew == 1.25


def test_layer_that_shares_no_label_embeddings_has_no_version_skew() -> None:
    tally = TrainTally(0)
    tally.add(torch.tensor(1.0))
    assert tally.report().version_skew is None


def test_training_tally_keeps_no_graph_alive() -> None:
    tally = TrainTally(0)
    tally.add(torch.ones(1, requires_grad=True).sum())
    assert not tally.losses[0].requires_grad


def test_latest_loss_is_nan_before_the_first_step() -> None:
    assert math.isnan(TrainTally(0).finite_latest())


def test_latest_loss_stays_until_the_next() -> None:
    tally = TrainTally(0)
    tally.add(torch.tensor(2.0))
    assert (tally.finite_latest(), tally.finite_latest()) == (2, 2)
    tally.add(torch.tensor(1.0))
    assert tally.finite_latest() == 1


def test_a_look_behind_finds_what_is_no_number_a_call_later_and_misses_nothing() -> None:
    tally = TrainTally(1)
    for loss in (1.0, math.nan):
        tally.add(torch.tensor(loss))
    tally.look_behind()  # has them copied, and looks at nothing
    tally.add(torch.tensor(2.0))
    with pytest.raises(NonFiniteLossError, match="layer 2: the loss is nan") as found:
        tally.look_behind()
    assert found.value.step == 1
    good = TrainTally(0)
    for loss in (1.0, 2.0, 3.0):
        good.add(torch.tensor(loss))
        good.look_behind()
    assert good.finite_latest() == 3
    good.add(torch.tensor(math.inf))
    good.look_behind()
    with pytest.raises(NonFiniteLossError) as found:
        good.finite_latest()  # waits for no later call
    assert found.value.step == 3


@pytest.mark.parametrize(("bad", "said"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_first_loss_that_is_not_finite_is_found_among_later_ones(bad: float, said: str) -> None:
    tally = TrainTally(1)
    tally.add(torch.tensor(1.0))
    tally.finite_latest()
    for loss in (2.0, bad, 3.0, math.nan):
        tally.add(torch.tensor(loss))
    with pytest.raises(NonFiniteLossError, match=f"layer 2: the loss is {said}") as found:
        tally.finite_latest()
    assert found.value.layer == 1
    assert found.value.loss == pytest.approx(bad, nan_ok=True)


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation passes


@dataclass
class Seen:
    """A batch as a tally sees it; ``scores`` are a readout's, or the layer's own."""

    loss: Tensor
    features: Tensor  # (N, 4)
    labels: Tensor  # (N,)
    scores: Tensor  # (N, K)

    def add_to(self, tally: EvaluationTally, *, readout: Tensor | None, direct: Tensor | None) -> None:
        tally.add(loss=self.loss, features=self.features, labels=self.labels, scores=readout, direct_scores=direct)


def batches(num_classes: int, sizes: list[int], seed: int = 0) -> list[Seen]:
    random = torch.Generator().manual_seed(seed)
    return [
        Seen(
            torch.rand((), generator=random),
            torch.randn(size, 4, generator=random),
            torch.randint(num_classes, (size,), generator=random),
            torch.randn(size, num_classes, generator=random),
        )
        for size in sizes
    ]


def counted(given_batches: list[Seen], top_k: int) -> tuple[float, float, list[int]]:
    """Accuracy, top-k accuracy and predictions, image by image."""
    labels = torch.cat([batch.labels for batch in given_batches]).tolist()
    scores = torch.cat([batch.scores for batch in given_batches]).tolist()
    ranks = [sorted(range(len(row)), key=lambda c, row=row: -row[c]) for row in scores]  # type: ignore[misc]
    first = sum(ranked[0] == label for ranked, label in zip(ranks, labels, strict=True))
    top = sum(label in ranked[:top_k] for ranked, label in zip(ranks, labels, strict=True))
    return first / len(labels), top / len(labels), [ranked[0] for ranked in ranks]


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("sizes", [[10], [4, 4, 2], [1, 7, 3, 1]])
def test_evaluation_tally_equals_counting_directly(top_k: int, sizes: list[int]) -> None:
    given_batches = batches(4, sizes)
    tally = EvaluationTally(3, num_classes=4, features=4, top_k=top_k, device=CPU)
    for batch in given_batches:
        batch.add_to(tally, readout=batch.scores, direct=None)
    report = tally.report(with_predictions=True)

    accuracy, top, predictions = counted(given_batches, top_k)
    labels, scores = (torch.cat([getattr(batch, name) for batch in given_batches]) for name in ("labels", "scores"))
    assert report.layer == 3
    assert (report.accuracy, report.top_k, report.direct_accuracy) == (accuracy, top, None)
    assert report.readout_loss == pytest.approx(F.cross_entropy(scores.double(), labels).item(), rel=1e-6)
    by_image = sum(batch.loss.item() * len(batch.labels) for batch in given_batches) / len(labels)
    assert report.loss == pytest.approx(by_image, rel=1e-12)
    assert report.predictions is not None
    assert report.predictions.tolist() == predictions


@pytest.mark.parametrize("sizes", [[10], [4, 4, 2]])
def test_layer_without_a_readout_is_judged_by_its_own_scores(sizes: list[int]) -> None:
    given_batches = batches(4, sizes)
    tally = EvaluationTally(0, num_classes=4, features=4, top_k=2, device=CPU)
    for batch in given_batches:
        batch.add_to(tally, readout=None, direct=batch.scores)
    report = tally.report(with_predictions=True)
    accuracy, top, predictions = counted(given_batches, 2)
    assert (report.accuracy, report.top_k, report.direct_accuracy) == (accuracy, top, accuracy)
    assert report.readout_loss is None, "similarities are no readout's"
    assert report.predictions is not None
    assert report.predictions.tolist() == predictions


def test_readout_is_judged_beside_the_layers_own_scores() -> None:
    readouts, own = batches(4, [30], seed=1), batches(4, [30], seed=1)
    own[0].scores = torch.randn(30, 4, generator=torch.Generator().manual_seed(2))
    tally = EvaluationTally(0, num_classes=4, features=4, top_k=2, device=CPU)
    readouts[0].add_to(tally, readout=readouts[0].scores, direct=own[0].scores)
    report = tally.report(with_predictions=True)
    accuracy, top, predictions = counted(readouts, 2)
    assert (report.accuracy, report.top_k) == (accuracy, top)
    assert report.direct_accuracy == counted(own, 2)[0] != accuracy
    assert report.predictions is not None
    assert report.predictions.tolist() == predictions


def test_top_k_of_fewer_classes_than_k_is_1() -> None:
    tally = EvaluationTally(0, num_classes=3, features=4, top_k=5, device=CPU)
    for batch in batches(3, [6]):
        batch.add_to(tally, readout=batch.scores, direct=None)
    assert tally.report().top_k == 1


def test_without_a_readout_loss_and_fisher_are_all_there_is() -> None:
    tally = EvaluationTally(0, num_classes=3, features=4, top_k=1, device=CPU)
    for batch in batches(3, [20]):
        batch.add_to(tally, readout=None, direct=None)
    report = tally.report(with_predictions=True)
    assert (report.accuracy, report.top_k, report.direct_accuracy) == (None, None, None)
    assert (report.readout_loss, report.predictions) == (None, None)
    assert report.fisher is not None
    assert report.fisher > 0


def test_predictions_are_reported_only_when_asked_for() -> None:
    tally = EvaluationTally(0, num_classes=3, features=4, top_k=1, device=CPU)
    for batch in batches(3, [5]):
        batch.add_to(tally, readout=batch.scores, direct=batch.scores)
    assert tally.report().predictions is None


def test_tally_of_a_run_takes_classes_and_k_from_it() -> None:
    tally = EvaluationTally.of(tiny_spec(num_classes=5), 1, 8, CPU)
    assert tally.moments is not None
    assert (tally.layer, tally.top_k, tuple(tally.moments.sums.shape)) == (1, 2, (5, 8))


@pytest.mark.parametrize(("num_classes", "features"), [(1, 4), (3, WIDEST + 1)])
def test_of_one_class_or_very_long_features_there_is_no_fisher_criterion(num_classes: int, features: int) -> None:
    tally = EvaluationTally(0, num_classes=num_classes, features=features, top_k=1, device=CPU)
    labels = torch.zeros(6, dtype=torch.int64)
    tally.add(loss=torch.ones(()), features=torch.ones(6, features), labels=labels, scores=None, direct_scores=None)
    assert tally.report().fisher is None


def test_of_features_that_are_no_number_there_is_no_fisher_criterion() -> None:
    """Symptom: a weight that was lost in a validation ended the run by an error of eigenvalues, and not of the loss."""
    tally = EvaluationTally(0, num_classes=2, features=4, top_k=1, device=CPU)
    labels, features = torch.tensor([0, 1, 0, 1]), torch.full((4, 4), torch.nan)
    tally.add(loss=torch.tensor(torch.nan), features=features, labels=labels, scores=None, direct_scores=None)
    assert tally.report().fisher is None


# ---------------------------------------------------------------------------------------------------------------------
# The best epoch


Keep = Literal["loss", "accuracy", "last"]


def validated(
    losses: list[float], accuracies: list[float | None], *, keep: Keep, order: list[int] | None = None
) -> History:
    """A history of two layers in two stages; the first layer's figures would favour another epoch."""
    history = History.of(changed(tiny_spec(net=VitSettings(dim=8, heads=2, depth=2, patch=2)), "train", keep=keep))
    for epoch in order or range(len(losses)):
        for stage, loss, accuracy in ((1, losses[epoch], accuracies[epoch]), (0, float(epoch), 1.0 - epoch / 10)):
            layer = LayerReport(layer=stage, losses=np.zeros(0, np.float32), loss=loss, accuracy=accuracy)
            history.add(PassReport(stage=stage, kind=Kind.VALIDATE, epoch=epoch, layers=[layer]))
    return history


LOSSES: list[float] = [3.0, 1.0, 1.0, 2.0]
ACCURACIES: list[float | None] = [0.5, 0.6, 0.8, 0.8]


@pytest.mark.parametrize(("keep", "best"), [("loss", 1), ("accuracy", 2), ("last", 3)])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0]])
def test_best_epoch_is_the_first_of_the_last_layers_best(keep: Keep, best: int, order: list[int]) -> None:
    """Whatever the order in which the reports came."""
    assert validated(LOSSES, ACCURACIES, keep=keep, order=order).best_epoch == best


@pytest.mark.parametrize(("keep", "best"), [("loss", 2), ("accuracy", 1), ("last", 2)])
def test_epoch_whose_loss_is_no_number_is_never_the_best(keep: Keep, best: int) -> None:
    losses, accuracies = [math.nan, 3.0, 2.0, math.inf], [1.0, 0.7, 0.6, 0.9]
    assert validated(losses, list(accuracies), keep=keep).best_epoch == best


@pytest.mark.parametrize("keep", ["loss", "accuracy", "last"])
def test_where_no_loss_was_a_number_there_is_no_best_epoch(keep: Keep) -> None:
    history = validated([math.nan, math.inf], [0.5, 0.5], keep=keep)
    assert history.best_epoch is None
    with pytest.raises(RunError, match="`lr`"):
        history.require_best_epoch(Phase(range(history.num_layers), range(9)))


def test_training_losses_do_not_make_an_epoch_the_best() -> None:
    history = validated([2.0, 3.0], [0.5, 0.5], keep="loss")
    layer = LayerReport(layer=1, losses=np.ones(1, np.float32), loss=0.0)
    history.add(PassReport(stage=1, kind=Kind.TRAIN, epoch=2, layers=[layer]))
    assert history.best_epoch == 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_epochs_line_is_said_once_whichever_stage_reports_last(order: tuple[int, int], capsys: Any) -> None:
    """Symptom: between two looks at the stages the last one's report could come first, and its line was left out."""
    spec = tiny_spec(net=VitSettings(dim=8, heads=2, depth=2, patch=2), stages=2)
    display = Display(spec, 12, Console(width=200), began=0.0)
    for kind in (Kind.TRAIN, Kind.VALIDATE):
        for stage in order:
            layer = LayerReport(layer=stage, losses=np.zeros(0, np.float32), loss=1.0 + stage)
            clock = Clock()
            clock.restart()
            report = PassReport(stage=stage, kind=kind, epoch=0, layers=[layer], account=clock.lap())
            display.observe(report)
    assert capsys.readouterr().out.count("loss 1.000 2.000, validation 1.000 2.000") == 1


def test_a_run_that_goes_on_in_fewer_stages_is_shown_from_its_first_batch_on() -> None:
    """Symptom: where the run was, in as many stages as before, was shown with as few meters, and the run ended."""
    spec = tiny_spec(net=VitSettings(dim=8, heads=2, depth=2, patch=2), stages=2)
    display = Display(spec, 12, Console(width=200, quiet=True), began=0.0)
    clock = Clock()
    clock.restart()

    def seen(stages: int, kind: Kind | None) -> list[Status]:
        return [Status(stage=stage, account=clock.read(), kind=kind, losses=[1.0]) for stage in range(stages)]

    display.follow(seen(2, Kind.TRAIN))
    display.divide(spec.in_stages(1))
    display.follow(seen(1, None))
    before = display.now
    display.follow(seen(1, Kind.TRAIN))
    after = display.now
    assert before is None
    assert after is not None and [stage.layers for stage in after.stages] == ["1–2"]
