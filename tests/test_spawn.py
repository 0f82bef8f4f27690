"""A process that answers questions: its errors come back as they were, its death has a name, and it always ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.errors import NonFiniteLossError, UserError
from pipeline.spawn import Child, ChildDiedError, ChildFailedError, ask_all, ready


class _OddError(Exception):
    """Does not come through pickle: its arguments are not those of its constructor."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def counter(start: int) -> Callable[[int], int]:
    """Answers with the sum of all questions, and a start."""
    total = start

    def add(number: int) -> int:
        nonlocal total
        total += number
        return total

    return add


def doer() -> Callable[[str], Any]:
    """Does as it is told."""
    return _do


def _do(what: str) -> Any:
    match what:
        case "interrupted":
            os.kill(os.getpid(), signal.SIGINT)
            return "still here"
        case "memory":
            raise RuntimeError("a step failed") from MemoryError("no more")
        case "loss":
            raise NonFiniteLossError(0, float("nan"))
        case "odd":
            raise _OddError(1, 2)
        case "broken":
            raise BrokenPipeError("another pipe than the one to whoever asked")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "leaves":
            sys.exit(3)
        case "sleeps":
            time.sleep(600)
    return what


def refuses(reason: str) -> Callable[[None], None]:
    raise UserError(reason)


def told(what: str) -> ChildFailedError:
    """How an error in a process arrives."""
    with Child("the child", doer) as child, pytest.raises(ChildFailedError) as failure:
        child.ask(what)
    return failure.value


def test_a_child_keeps_what_it_made_from_one_question_to_the_next() -> None:
    with Child("counter", counter, 10) as child:
        assert [child.ask(1), child.ask(2)] == [11, 13]
        child.send(3)
        child.send(4)
        assert [child.receive(), child.receive()] == [16, 20]


def test_several_children_are_asked_at_once_and_answer_in_their_order() -> None:
    with Child("first", counter, 0) as first, Child("second", counter, 100) as second:
        assert ask_all([first, second], 5) == [5, 105]
        second.send(1)
        assert ready([first, second], 60) == [second]


def test_an_error_arrives_as_it_was_with_its_cause_and_the_childs_name() -> None:
    failure = told("memory")
    assert str(failure) == "the child failed: RuntimeError: a step failed"
    assert (type(failure.error), str(failure.error)) == (RuntimeError, "a step failed")
    assert isinstance(failure.error.__cause__, MemoryError)
    lost = told("loss").error
    assert isinstance(lost, NonFiniteLossError) and lost.layer == 0


def test_an_error_that_does_not_come_through_pickle_arrives_in_words() -> None:
    assert str(told("odd")) == "the child failed: _OddError: 1 and 2"


def test_a_broken_pipe_of_the_childs_own_is_told_like_any_error() -> None:
    """Symptom: a child whose socket broke ended without a word, as if nobody had asked it."""
    assert str(told("broken")).startswith("the child failed: BrokenPipeError: another pipe")


def test_what_goes_wrong_before_the_first_question_is_told_as_its_answer() -> None:
    with Child("the child", refuses, "no") as child, pytest.raises(ChildFailedError, match=r"failed: UserError: no$"):
        child.ask(None)


@pytest.mark.parametrize(("what", "how"), [("killed", "by signal SIGKILL"), ("leaves", "with exit status 3")])
def test_a_death_is_a_sentence_that_names_who_died_and_how(what: str, how: str) -> None:
    with Child("the child", doer) as child:
        for _ in range(2):  # asked again, it is as dead
            with pytest.raises(ChildDiedError) as death:
                child.ask(what)
            assert str(death.value) == f"the child died {how}"
            assert death.value.how == how


def test_a_death_ends_the_waiting_for_the_others() -> None:
    with Child("sleeper", doer) as sleeper, Child("victim", doer) as victim:
        sleeper.send("sleeps")
        with pytest.raises(ChildDiedError, match="victim died"):
            ask_all([sleeper, victim], "killed")


def test_silence_is_an_error_that_names_who_is_silent() -> None:
    with Child("sleeper", doer) as sleeper, pytest.raises(TimeoutError, match=r"sleeper: no answer for 0\.2 s"):
        ask_all([sleeper], "sleeps", timeout=0.2)


def test_a_child_leaves_ctrl_c_to_whoever_asks() -> None:
    with Child("the child", doer) as child:
        assert child.ask("interrupted") == "still here"


@pytest.mark.alone
def test_a_closed_child_is_gone_at_once_whatever_it_does() -> None:
    with Child("sleeper", doer) as child:
        child.ask("ready")
        child.send("sleeps")
        begun = time.monotonic()
        child.close()
        assert time.monotonic() - begun < 10
        assert not [process for process in multiprocessing.active_children() if process.name == "sleeper"]
