"""Workers of a run that begins anew: those that live keep their processes, those that died are replaced."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoints.folder import Manifest
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import CheckpointSettings, PipelineSettings, Settings
from pipeline.errors import NonFiniteLossError
from pipeline.kind import Kind
from pipeline.runtime.checkpointing import Checkpointing
from pipeline.runtime.history import RunResult
from pipeline.runtime.observer import Observer
from pipeline.runtime.recovery import recovering
from pipeline.runtime.stage import Send
from pipeline.runtime.states import RunState
from pipeline.telemetry.reports import Status
from pipeline.transport.message import Message
from tests.conftest import make_run
from tests.test_embedding_equality import case
from tests.test_equality import assert_same, serial
from workers.failures import ClusterLostError
from workers.names import StageName

pytestmark = pytest.mark.timeout(600)  # a busy machine takes minutes to start workers

EVERY = 8  # steps between checkpoints
STALL = 8  # seconds after which a stage that is stopped or stuck is replaced
PATIENT = PipelineSettings().stall_timeout  # where nobody is to wait so long


Harm = signal.Signals | Callable[[Any], None]
"""What is done to a worker: a signal to its process, or something that it does itself."""

Victims = Mapping[int, tuple[str, Harm]]
"""To whom it is done, by the training step at which."""


class Disturbing(Observer):
    """Does something to a run when its first stage has come to a training step; the first time not before there is a
    checkpoint to go on from."""

    def __init__(self, spec: RunSpec, moments: Mapping[int, Callable[[], None]]) -> None:
        self._spec, self._moments = spec, dict(moments)
        self.said: list[str] = []
        self.stacks: dict[str, str] = {}
        self.states: list[RunState] = []
        self.stages: list[int] = []
        self._saved = False
        self._disturbed = False  # and not gone on since

    def checkpointed(self, manifest: Manifest) -> None:
        self._saved = True

    def progressed(self, statuses: list[Status]) -> None:
        first = statuses[0]
        if not self._saved or self._disturbed or not self._moments or first.kind is None:
            return
        moment = min(self._moments)
        if first.epoch * self._spec.steps_per_epoch + first.step >= moment:
            self._disturbed = True
            self._moments.pop(moment)()

    def notified(self, sentence: str) -> None:
        self.said.append(sentence)
        self._disturbed &= "Going on from" not in sentence

    def entered(self, state: RunState) -> None:
        self.states.append(state)

    def divided(self, spec: RunSpec) -> None:
        self.stages.append(spec.num_stages)

    def noted(self, title: str, text: str) -> None:
        self.stacks[title] = text


def saving(settings: Settings, *, stall_timeout: float = STALL, **pipeline: Any) -> Settings:
    pipe = replace(settings.pipeline, executor="ray", stall_timeout=stall_timeout, **pipeline)
    checkpoint = CheckpointSettings(checkpoint_every=str(EVERY), max_restarts=5)
    return replace(settings, pipeline=pipe, checkpoint=checkpoint)


def wait_behind(worker: Any, moments: Collection[int], gate: Path) -> None:
    """A stage: behind each of these training steps waits until the gate, a folder, has a file of that number. However
    slowly a busy machine looks at the run, it does not come further, let alone to its end."""
    stage = worker._begun.stage
    handle, steps = stage.handle, stage.spec.steps_per_epoch

    def handled(message: Message, send: Send) -> bool:
        more: bool = handle(message, send)
        done = message.epoch * steps + message.step
        while message.kind is Kind.TRAIN and done in moments and not (gate / str(done)).exists():
            time.sleep(0.01)
        return more

    stage.handle = handled


def processes(workers: Any) -> dict[str, int]:
    """The process of every worker, by its name."""
    import ray

    there = workers._group._crew.by_name
    return {name: ray.get(worker.__ray_call__.remote(lambda _: os.getpid())) for name, worker in there.items()}


@dataclass(frozen=True)
class Undergone:
    """A disturbed run: its result, the workers' processes before each disturbance and at the end, and who watched."""

    result: RunResult
    seen: list[dict[str, int]]
    observer: Disturbing

    @property
    def replaced(self) -> list[set[str]]:
        """By each disturbance."""
        return [
            {name.split(" (")[0] for name in before if before[name] != after[name]}
            for before, after in pairwise(self.seen)
        ]

    @property
    def going_on(self) -> list[str]:
        return [sentence for sentence in self.observer.said if "Going on from" in sentence]


def disturbed(settings: Settings, folder: Path, victims: Victims, *, stages: int) -> Undergone:
    """Trains, and disturbs it meanwhile."""
    import ray

    from workers import lasting
    from workers.group import RayWorkers

    spec, _ = make_run(settings, stages=stages)
    seen: list[dict[str, int]] = []
    gate = folder / "gate"
    gate.mkdir()

    class Waiting(RayWorkers):
        def _begin_all(self) -> None:
            super()._begin_all()
            first = self._crew.stages[StageName(0)]
            ray.get(first.__ray_call__.remote(wait_behind, list(victims), gate))

    with pytest.MonkeyPatch.context() as patch, lasting.LastingWorkers(spec) as workers:
        patch.setattr(lasting, "RayWorkers", Waiting)

        def disturb(at: int, name: str, how: Harm) -> None:
            seen.append(processes(workers))
            group: Any = workers._group
            victim = next(who for who in seen[-1] if who.startswith(name))
            if isinstance(how, signal.Signals):
                os.kill(seen[-1][victim], how)
            else:
                ray.get(group._crew.by_name[victim].__ray_call__.remote(how))
            (gate / str(at)).touch()

        moments = {at: partial(disturb, at, *who) for at, who in victims.items()}
        observer = Disturbing(spec, moments)
        result = recovering(spec, workers.train, observer, Checkpointing(folder=folder / "checkpoints"))
        seen.append(processes(workers))
    return Undergone(result, seen, observer)


def hold_the_lock(worker: Any) -> None:
    """Soon no other Python runs in the process any more."""

    def sleep_for_good() -> None:
        while True:
            ctypes.PyDLL(None).sleep(1000)

    threading.Timer(0.2, sleep_for_good).start()  # later than the answer to this call


def test_only_what_died_or_is_stuck_is_started_anew(cluster: None, tmp_path: Path) -> None:
    """Label embeddings of two stages: a stage is killed, then the coordinator, then a stage is stopped, and a thread
    of one never gives the interpreter back."""
    settings = case("shared-sum, lag 1")
    settings = replace(settings, train=replace(settings.train, epochs=10))  # of 16 steps
    victims: Victims = {
        12: ("stage 2", signal.SIGKILL),
        40: ("coordinator", signal.SIGKILL),
        70: ("stage 1", signal.SIGSTOP),
        100: ("stage 2", hold_the_lock),
    }
    run = disturbed(saving(settings), tmp_path, victims, stages=2)
    assert_same(run.result, serial(settings))
    said, (first, second, third, fourth) = run.observer.said, run.going_on
    assert run.replaced == [{"stage 2"}, {"coordinator"}, {"stage 1"}, {"stage 2"}], said
    assert first.startswith("stage 2 ") and second.startswith("coordinator "), said
    assert re.search(r"its process \d+ was stopped by a signal", third), said
    assert re.match(r"stage 2 \(.*\) has not answered for 8 s: its process \d+ is stuck", fourth), said
    (stacks,) = (text for title, text in run.observer.stacks.items() if title.startswith("stacks of stage 2"))
    assert "sleep_for_good" in stacks
    assert sum("other workers go on in their processes." in sentence for sentence in said) == 4, said
    assert sum("The run goes on, " in sentence for sentence in said) == 4, said


def spoil_a_weight(worker: Any) -> None:
    """As a flipped bit of a weight's exponent may."""
    worker._begun.stage.layers[0].net.parameters().__next__().data.view(-1)[0] = float("nan")


def abort_the_communicator(worker: Any) -> None:
    worker._begun.ends.break_off()


def test_lost_bits_and_connections_cost_no_process(cluster: None, small_settings: Settings, tmp_path: Path) -> None:
    """A weight of the stage in the middle is no number any more, then its connections break. Its neighbours and the
    feeder learn of it at once, by the connections that it breaks off.

    Symptom: they waited for the stall timeout, five minutes, and were replaced for it after eight seconds.
    """
    settings = replace(small_settings, train=replace(small_settings.train, epochs=3))  # of 40 steps
    victims: Victims = {14: ("stage 2", spoil_a_weight), 40: ("stage 2", abort_the_communicator)}
    run = disturbed(saving(settings, transport="gloo", stall_timeout=PATIENT), tmp_path, victims, stages=3)
    assert_same(run.result, serial(settings))
    said, (first, second) = run.observer.said, run.going_on
    assert run.replaced == [set(), set()], said
    assert re.match(r"stage 2, layer \d: the loss is nan at epoch 1, step \d+\. Going on from ", first), said
    assert re.match(r"(feeder|stage) \d → stage \d: the neighbour is gone \(.*\)\. Going on from ", second), said


@pytest.mark.exhaustive  # test_failures.py has such a run end, with its weights
def test_a_loss_that_is_no_number_before_any_checkpoint_ends_the_run_at_once(
    cluster: None, small_settings: Settings, tmp_path: Path
) -> None:
    from workers.lasting import LastingWorkers

    diverging = replace(saving(small_settings), train=replace(small_settings.train, lr=1e18))
    spec, _ = make_run(diverging, stages=2)
    observer = Disturbing(spec, {})
    with LastingWorkers(spec) as workers, pytest.raises(NonFiniteLossError) as failure:
        recovering(spec, workers.train, observer, Checkpointing(folder=tmp_path))
    assert failure.value.result is not None, "what was learned"
    assert RunState.RESTARTING not in observer.states
    assert not [sentence for sentence in observer.said if "Going on" in sentence], (
        "there was nothing good to go on from"
    )


def test_machines_that_do_not_see_the_run_folder_send_their_parts_and_are_sent_them(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a cluster without shared storage: no worker finds the mark, so none reads or writes there. Nor does any
    share memory with another.

    The stage that is left waits for label embeddings, which lack what the other one would have said, when that dies.
    """
    from workers import group

    monkeypatch.setattr(group, "mark", lambda folder: "a word that is written nowhere")
    settings = case("shared-sum, lag 1")
    settings = replace(settings, train=replace(settings.train, epochs=4))
    victims = {24: ("stage 2", signal.SIGKILL), 44: ("coordinator", signal.SIGKILL)}
    run = disturbed(saving(settings, stall_timeout=PATIENT, transport="gloo"), tmp_path, victims, stages=2)
    assert_same(run.result, serial(settings))
    assert run.replaced == [{"stage 2"}, {"coordinator"}], run.observer.said
    assert len(run.going_on) == 2 and "the beginning" not in "".join(run.going_on), run.observer.said
    assert not list(tmp_path.glob("**/.*")), "neither marks nor parts of files are left"


@pytest.mark.exhaustive
@pytest.mark.parametrize("transport", ["gloo", "shm"])
def test_every_worker_may_die_and_no_connection_is_left(
    cluster: None, small_settings: Settings, tmp_path: Path, transport: str
) -> None:
    victims = {
        at: (name, signal.SIGKILL)
        for at, name in ((10, "feeder 2"), (20, "stage 3"), (30, "feeder 1"), (45, "stage 1"))
    }
    settings = saving(small_settings, transport=transport, feeders=2)
    run = disturbed(settings, tmp_path, victims, stages=3)
    assert_same(run.result, serial(small_settings))
    assert run.replaced == [{"feeder 2"}, {"stage 3"}, {"feeder 1"}, {"stage 1"}], run.observer.said


@pytest.mark.exhaustive
def test_a_first_stage_that_reads_for_itself_is_replaced(
    cluster: None, small_settings: Settings, tmp_path: Path
) -> None:
    settings = saving(small_settings, feeders=0, transport="gloo")
    run = disturbed(settings, tmp_path, {20: ("stage 1", signal.SIGKILL)}, stages=2)
    assert_same(run.result, serial(small_settings))
    assert run.replaced == [{"stage 1"}]


def test_where_ray_is_another_program_s_its_loss_ends_the_run(
    cluster: None, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers import lasting

    spec, _ = make_run(saving(small_settings), stages=2)

    def lost(*_: Any) -> RunResult:
        raise ClusterLostError("host here lost")

    monkeypatch.setattr(lasting, "control", lost)
    monkeypatch.setattr(lasting, "RayWorkers", lambda *_: pytest.MonkeyPatch.context())  # any context will do
    for renew, mends in ((None, False), (lambda: None, True)):
        with lasting.LastingWorkers(spec, renew) as workers, pytest.raises(ClusterLostError) as failure:
            workers.train(Observer(), Checkpointing())
        assert failure.value.mends is mends


HOLDER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
print("address", cluster.address, flush=True)
for line in sys.stdin:
    node = [node for node in nodes if node.node_id in line.split()][-1]
    cluster.remove_node(node, allow_graceful=False)
cluster.shutdown()
"""
"""Another process's cluster: three nodes with a core each, one of which dies when its id is among those on a line."""

NODES = """
import subprocess
import sys
from pathlib import Path
import ray
from dataclasses import replace
from pipeline.config import build
from pipeline.config.settings import DataSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.methods import CffSettings
from pipeline.nets import VitSettings
from pipeline.runtime.checkpointing import Checkpointing
from pipeline.runtime.recovery import recovering
from tests.conftest import make_run
from tests.test_equality import assert_same, serial
from tests.test_lasting import Disturbing, saving
from workers.lasting import LastingWorkers

settings = Settings(
    data=DataSettings(data="digits"), net=VitSettings(dim=16, heads=2, depth=4), method=CffSettings(views=1),
    train=TrainSettings(epochs=3, batch_size=32), readout=ReadoutSettings(readout_epochs=1),
)
settings = replace(settings, pipeline=replace(settings.pipeline, executor="serial", device="cpu"))
holder = subprocess.Popen([sys.executable, "-c", sys.argv[2]], stdin=-1, stdout=-1, text=True)
address = next(line for line in holder.stdout if line.startswith("address ")).split()[1]
ray.init(address=address, log_to_driver=False)
stages = int(sys.argv[3])
spec, _ = make_run(saving(settings, resource_timeout=5), stages=stages)
used = {}

def lose_a_machine():
    group = workers._group
    used["before"] = [node for node, _ in group._places.values()]
    used["clocks"] = [clock.best for clock in group._clocks.values()]
    print(*used["before"], file=holder.stdin, flush=True)

with LastingWorkers(spec) as workers:
    observer = Disturbing(spec, {14: lose_a_machine})
    result = recovering(spec, workers.train, observer, Checkpointing(folder=Path(sys.argv[1])))
    used["after"] = [node for node, _ in workers._group._places.values()]
assert_same(result, serial(settings))
# Other nodes have clocks of their own as far as the run knows; here they are the same one.
assert used["clocks"] and all(abs(clock.seconds) <= clock.uncertainty < 5 for clock in used["clocks"])
lost = set(used["before"]) - set(used["after"])
assert len(lost) == 1 and len(used["after"]) == min(stages, 2), used
assert observer.stages == ([] if stages == 2 else [2])
print(*observer.said, sep="\\n")
ray.shutdown()
holder.communicate(timeout=60)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stages", "said"),
    [
        pytest.param(2, "The run goes on, ", id="to the third", marks=pytest.mark.exhaustive),
        pytest.param(
            3,
            "There is room for 2 stages of 3. Going on in 2 stages.",
            id="in fewer stages",
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_the_layers_of_a_lost_machine_go_to_others(tmp_path: Path, data_dir: Path, stages: int, said: str) -> None:
    """Three nodes of a cluster, on this machine, with a core each; one of those that are used dies."""
    command = [sys.executable, "-c", NODES, str(tmp_path), HOLDER, str(stages)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout and " lost: Ray's raylet there has died. Going on from " in done.stdout, done.stdout
