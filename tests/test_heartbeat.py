"""A machine that no longer answers is noticed by its name: one that is silent, and one where Ray's process is gone."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from workers.failures import ClusterLostError, HostLostError
from workers.heartbeat import LOST_AFTER, Door, Heartbeat, Silence

_LONG = 60.0  # seconds: no more than that nothing hangs


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def listening(stack: ExitStack, backlog: int = 128) -> tuple[socket.socket, int]:
    """A process's port: the system answers on it, as far as the backlog has room, whether or not anybody accepts."""
    server = stack.enter_context(socket.socket())
    server.bind(("127.0.0.1", 0))
    server.listen(backlog)
    return server, server.getsockname()[1]


def knocking(stack: ExitStack, port: int, *, node: str | None = "n1", tell: Callable[[str], None] = print) -> Heartbeat:
    door = Door(name="b (10.0.0.2)", address="127.0.0.1", port=port, process="raylet", node=node)
    heartbeat = Heartbeat([door], tell)
    stack.callback(heartbeat.close)
    return heartbeat


def loss_of(heartbeat: Heartbeat) -> HostLostError:
    end = time.monotonic() + _LONG
    while time.monotonic() < end:
        try:
            heartbeat.check()
        except HostLostError as error:
            return error
        time.sleep(0.1)
    raise AssertionError("nothing was lost")


def test_a_process_that_is_gone_is_noticed_by_its_host(stack: ExitStack) -> None:
    server, port = listening(stack)
    heartbeat = knocking(stack, port)
    server.accept()[0].close()  # it was heard
    server.close()
    error = loss_of(heartbeat)
    assert str(error) == "host b (10.0.0.2) lost: Ray's raylet there has died"
    assert (error.nodes, error.mends) == (frozenset({"n1"}), True)


def test_silence_is_told_first_and_then_a_loss(stack: ExitStack) -> None:
    """A backlog that is full: the system drops what comes, as if the cable were cut."""
    _, port = listening(stack, backlog=1)
    told: list[str] = []
    error = loss_of(knocking(stack, port, tell=told.append))
    assert str(error).startswith("host b (10.0.0.2) lost: it has not answered for ")
    (sentence,) = told
    assert sentence.startswith("host b (10.0.0.2) has not answered for ") and "counts as lost" in sentence


def test_without_the_head_nothing_goes_on(stack: ExitStack) -> None:
    server, port = listening(stack)
    heartbeat = knocking(stack, port, node=None)
    server.accept()[0].close()
    server.close()
    assert isinstance(loss_of(heartbeat), ClusterLostError)


def test_a_machine_that_never_answered_is_not_judged(stack: ExitStack) -> None:
    """A firewall may be in between, and nothing is known of what lies behind it."""
    server, port = listening(stack)
    server.close()
    heartbeat = knocking(stack, port)
    time.sleep(2)
    heartbeat.check()


@pytest.mark.parametrize(
    ("seconds", "knocks", "refused", "lost"),
    [
        (LOST_AFTER - 1, 9, False, False),
        (LOST_AFTER + 1, 9, False, True),
        (3600, 1, False, False),  # this process was suspended meanwhile
        (0, 1, True, True),
    ],
)
def test_when_a_silence_counts_as_a_loss(seconds: float, knocks: int, refused: bool, lost: bool) -> None:
    assert Silence(since=100.0, knocks=knocks, refused=refused).lost(100.0 + seconds) == lost
