"""Where a worker is that makes no headway, as another process of the machine finds it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from workers.stacks import _place, whereabouts

PROGRAM = """
import ctypes, threading, time
from workers.stacks import show_on_demand
def held():
    while True:
        ctypes.PyDLL(None).sleep(600)  # keeps the interpreter's lock; a signal wakes it
def beside():
    begun.set()
    time.sleep(600)
begun = threading.Event()
show_on_demand()
show_on_demand()  # nothing more
threading.Thread(target=beside, daemon=True).start()
begun.wait()
print("ready", flush=True)
held()
"""


@contextmanager
def running(program: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def wait_until(happened: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_stacks_are_told_while_a_thread_holds_the_interpreter_and_the_process_lives_on() -> None:
    with running(PROGRAM) as process:
        wait_until(lambda: re.search(r" in held$", whereabouts(process.pid).stacks, re.MULTILINE))
        for _ in range(2):
            found = whereabouts(process.pid)
            assert found.fact == f"its process {process.pid} is stuck"
            assert re.search(r"line 6 in held$", found.stacks, re.MULTILINE), found.stacks
            assert found.stacks.count(" in beside") == 1, "of this time alone"
        assert process.poll() is None


def test_a_process_that_is_stopped_or_gone_is_said_to_be() -> None:
    with running(PROGRAM) as process:
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert whereabouts(process.pid).fact == f"its process {process.pid} was stopped by a signal"
    assert whereabouts(process.pid).fact == f"its process {process.pid} is gone"


def test_a_process_that_tells_nothing_is_left_alone() -> None:
    with running("import time; print('ready', flush=True); time.sleep(600)") as process:
        found = whereabouts(process.pid)
        assert (found.fact, found.stacks) == (f"its process {process.pid} is stuck", "")
        time.sleep(0.3)
        assert process.poll() is None, "the signal would have ended it"


@pytest.mark.parametrize(("works", "place"), [("run", "pipeline/layers/layer.py:128 (train)"), ("poll", "")])
def test_the_place_is_the_innermost_line_of_ours_in_the_thread_that_works(works: str, place: str) -> None:
    stacks = f"""Thread 0x00007f0000000001 (most recent call first):
  File "/x/lib/python3.11/threading.py", line 331 in wait
  File "/home/u/code/workers/stage.py", line 10 in poll

Current thread 0x00007f0000000002 (most recent call first):
  File "/x/lib/python3.11/site-packages/torch/nn/functional.py", line 9 in linear
  File "/home/u/code/pipeline/layers/layer.py", line 128 in train
  File "/home/u/code/workers/stage.py", line 166 in {works}
"""
    assert _place(stacks) == place
