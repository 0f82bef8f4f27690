"""Can stages on GPUs stop dead? A model of who waits for whom, explored in every order of events.

A stage's host runs a list of operations; each has what it waits for, and what it launches on its GPU. Kernels run in
the order of their streams; a receive and its send run together. Worst case: everything that may wait for the whole
device does (kernels that are loaded on first use, the capture of a graph, memory that is allocated).

What a GPU has done follows from what was launched, so a state is how far each host has come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest

from pipeline.methods.embeddings import EmbeddingSettings
from pipeline.versions import Versions

STEPS = 3
Kernel = tuple[str, int, int]
"""receive, send, first (up to the activations) or rest (loss, update); stage; step."""


@dataclass(frozen=True)
class Operation:
    """One thing that a host does. ``ready`` is what it waits for; then it launches kernels and the rest is done."""

    name: str
    step: int
    ready: Callable[[State], bool]
    launches: tuple[Kernel, ...] = ()


@dataclass(frozen=True)
class Model:
    """Stages of one layer each.

    Attributes:
        ahead: payloads' receives are posted into every free buffer, and edges are made one after the other with theirs
            posted: how it was before headers went first.
        versions: of the state that layers share; None: they share none.
    """

    stages: int
    depth: int
    ahead: bool = False
    versions: Versions | None = None

    @cached_property
    def programs(self) -> tuple[tuple[Operation, ...], ...]:
        return tuple(tuple(self._set_up(stage) + self._run(stage)) for stage in range(self.stages))

    def _set_up(self, stage: int) -> list[Operation]:
        found = []
        for edge in range(self.stages - 1):
            if stage not in (edge, edge + 1):
                continue
            other = edge if stage == edge + 1 else edge + 1

            def both(state: State, stage: int = stage, other: int = other, edge: int = edge) -> bool:
                return state.reached(other, "make", edge) and state.idle(stage)

            receives = self.ahead and stage == edge + 1
            posted = tuple(("receive", stage, step) for step in range(min(STEPS, self.depth + 1)) if receives)
            found.append(Operation("make", edge, both, posted))
        everyone = Operation("begin", 0, lambda state: all(state.reached(s, "begin", 0) for s in range(self.stages)))
        return [*found, everyone]

    def _run(self, stage: int) -> list[Operation]:
        found = []
        for step in range(STEPS):
            if stage > 0:
                posted: tuple[Kernel, ...] = (("receive", stage, step),)
                if self.ahead:  # into the buffer of the message before
                    later = step + self.depth
                    posted = (("receive", stage, later),) if step > 0 and later < STEPS else ()
                found.append(Operation("take", step, self._header(stage, step), posted))
            found.append(Operation("forward", step, self._idle(stage), (("first", stage, step),)))
            if stage < self.stages - 1:
                found.append(Operation("send", step, self._room(stage, step), (("send", stage, step),)))
            found.append(Operation("read", step, self._version(stage, step)))
            found.append(Operation("learn", step, self._idle(stage), (("rest", stage, step),)))
            # A contribution is copied to the host, which waits for the kernels before it.
            found.append(Operation("push", step, self._learned(stage, step)))
        return found

    def _idle(self, stage: int) -> Callable[[State], bool]:
        return lambda state: state.idle(stage)

    def _header(self, stage: int, step: int) -> Callable[[State], bool]:
        return lambda state: state.past(stage - 1, "send", step)

    def _room(self, stage: int, step: int) -> Callable[[State], bool]:
        """The header before was taken: the receiver has posted one for it, depth + 1 ahead of what it works on."""
        begun = step - 1 - self.depth
        return lambda state: begun <= 0 or state.reached(stage + 1, "take", begun)

    def _learned(self, stage: int, step: int) -> Callable[[State], bool]:
        if self.versions is None or stage not in self.versions.contributors:
            return lambda state: True
        return lambda state: ("rest", stage, step) in state.done

    def _version(self, stage: int, step: int) -> Callable[[State], bool]:
        versions = self.versions
        if versions is None:
            return lambda state: True
        needed = [update for version in range(versions.read(stage, step)) for update in versions.updates(version)]
        return lambda state: all(state.past(layer, "push", of) for layer, of in needed)

    def before(self, kernel: Kernel) -> list[Kernel]:
        """What a kernel runs behind."""
        what, stage, step = kernel
        match what:
            case "receive":
                freed = step - self.depth - 1
                earlier = [("receive", stage, step - 1)] if step else []
                return [*earlier, ("rest", stage, freed)] if freed >= 0 else earlier
            case "send":
                return [("first", stage, step), *([("send", stage, step - 1)] if step else [])]
            case "first":
                arrived = [("receive", stage, step)] if stage else []
                earlier = [("rest", stage, step - 1)] if step else []
                left = [("send", stage, step - 1)] if step and stage < self.stages - 1 else []  # its one buffer
                return [*arrived, *earlier, *left]
            case _:
                return [("first", stage, step)]


class State:
    """How far each host has come, and with it every GPU."""

    def __init__(self, model: Model, at: tuple[int, ...]) -> None:
        self.model, self.at = model, at
        self.launched = {
            kernel
            for program, count in zip(model.programs, at, strict=True)
            for operation in program[:count]
            for kernel in operation.launches
        }
        self.done: set[Kernel] = set()
        while any(self._runs(kernel) for kernel in self.launched - self.done):
            pass

    def _runs(self, kernel: Kernel) -> bool:
        together = {kernel}
        if kernel[0] in ("send", "receive"):
            what, stage, step = kernel
            together.add(("receive", stage + 1, step) if what == "send" else ("send", stage - 1, step))
        if not together <= self.launched:
            return False
        if not all(before in self.done for one in together for before in self.model.before(one)):
            return False
        self.done |= together
        return True

    def idle(self, stage: int) -> bool:
        """Whether a wait for the stage's whole device ends."""
        return all(kernel in self.done for kernel in self.launched if kernel[1] == stage)

    def _number(self, stage: int, name: str, step: int) -> int:
        return next(n for n, o in enumerate(self.model.programs[stage]) if (o.name, o.step) == (name, step))

    def reached(self, stage: int, name: str, step: int) -> bool:
        """Whether the host of a stage is at an operation or past it."""
        return self.at[stage] >= self._number(stage, name, step)

    def past(self, stage: int, name: str, step: int) -> bool:
        return self.at[stage] > self._number(stage, name, step)

    def next(self) -> list[tuple[int, ...]]:
        """The states that one host's next operation leads to."""
        found = []
        for stage, (program, count) in enumerate(zip(self.model.programs, self.at, strict=True)):
            if count < len(program) and program[count].ready(self):
                found.append((*self.at[:stage], count + 1, *self.at[stage + 1 :]))
        return found


def dead_ends(model: Model) -> list[tuple[str, ...]]:
    """Where each host stands in the states that nothing leads out of, of all that can come about."""
    start, end = (0,) * model.stages, tuple(len(program) for program in model.programs)
    seen, left, found = {start}, deque([start]), []
    while left:
        at = left.popleft()
        following = State(model, at).next()
        if not following and at != end:
            found.append(
                tuple(
                    f"{program[count].name} {program[count].step}" if count < len(program) else "end"
                    for program, count in zip(model.programs, at, strict=True)
                )
            )
        for state in following:
            if state not in seen:
                seen.add(state)
                left.append(state)
    assert end in seen or found, "the model goes nowhere"
    return found


def versions(stages: int, **values: Any) -> Versions:
    return EmbeddingSettings(**values).versions(stages, STEPS)


SYNCS: dict[str, dict[str, Any] | None] = {
    "no shared state": None,
    "last, lag 0": {"embedding_mode": "last", "embedding_lag": 0},
    "sum, lag 1": {"embedding_mode": "shared-sum", "embedding_lag": 1},
    "sum, exact": {"embedding_mode": "shared-sum", "embedding_sync": "exact"},
    "in turn, lag 0": {"embedding_mode": "in-turn", "embedding_lag": 0},
    "in turn, exact": {"embedding_mode": "in-turn", "embedding_sync": "exact"},
}


def model(stages: int, depth: int, sync: str, *, ahead: bool = False) -> Model:
    how = SYNCS[sync]
    return Model(stages, depth, ahead, versions(stages, **how) if how is not None else None)


@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("stages", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_stages_never_wait_for_each_other_in_a_circle(stages: int, depth: int, sync: str) -> None:
    assert dead_ends(model(stages, depth, sync)) == []


@pytest.mark.parametrize("stages", [3, 4])
def test_receives_that_are_posted_between_two_communicators_would_end_it(stages: int) -> None:
    """The model finds what it is for: the second communicator waits for a device on which receives spin."""
    stuck = dead_ends(model(stages, 1, "no shared state", ahead=True))
    assert stuck and all(hosts[1] == "make 1" for hosts in stuck)


def test_receives_that_are_posted_ahead_would_end_it_where_layers_read_exactly() -> None:
    """Stage 2 waits for its device, that for message 3, its sender for the version that stage 2 is to help make."""
    stuck = dead_ends(model(2, 2, "sum, exact", ahead=True))
    assert stuck
    assert all(hosts[0].startswith("read") and hosts[1].split()[0] in ("forward", "learn") for hosts in stuck)
