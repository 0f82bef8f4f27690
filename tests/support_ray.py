"""A Ray cluster of this machine that runs can join, as a person starts one."""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

_START = 120.0


def free_port() -> int:
    """A TCP port of the loopback that nobody listens to now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def ray_head(monkeypatch: pytest.MonkeyPatch, *, num_cpus: int = 4) -> Iterator[str]:
    """``ray start --head`` on the loopback, with a token of its own; gives its address. Whatever is launched within
    has the token in its environment."""
    folder = Path("/tmp") / f"lp{time.time_ns() % 10**8}"  # noqa: S108 (short: Ray's sockets lie in it)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
    port = free_port()
    ray = Path(sys.executable).with_name("ray")
    flags = ["--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}"]
    flags += [f"--num-cpus={num_cpus}", "--include-dashboard=false", "--disable-usage-stats"]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([ray, "start", *flags], stdout=said, stderr=said, start_new_session=True)
        try:
            end = time.monotonic() + _START
            while not _says(said, "Ray runtime started"):
                assert process.poll() is None and time.monotonic() < end, "Ray's head did not start"
                time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(_START)
            shutil.rmtree(folder, ignore_errors=True)


def _says(said: IO[str], text: str) -> bool:
    said.seek(0)
    return text in said.read()
