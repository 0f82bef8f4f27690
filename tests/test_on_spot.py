"""tools/on_spot.py: a run on a spot instance hears of its end in time, and saves a checkpoint."""

from __future__ import annotations

import http.server
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support_documents import ROOT

_ACTION = {"action": "terminate", "time": "2026-11-30T18:02:00Z"}


@dataclass
class Metadata:
    """An instance's metadata service, version 2: whoever asks needs a token that was fetched by PUT."""

    address: str = ""
    about_to_end: bool = False
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    service = Metadata()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            wanted = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
            self.answer(200 if wanted else 400, "token of the test")

        def do_GET(self) -> None:
            service.asked.append(self.path)
            if self.headers["X-aws-ec2-metadata-token"] != "token of the test":
                self.answer(401, "")
            elif self.path == "/latest/meta-data/spot/instance-action" and service.about_to_end:
                self.answer(200, json.dumps(_ACTION))
            else:
                self.answer(404, "")

        def answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        service.address = f"http://127.0.0.1:{server.server_port}"
        yield service
        server.shutdown()


def on_spot(address: str, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "tools/on_spot.py", *command],
        env=os.environ | {"AWS_EC2_METADATA_SERVICE_ENDPOINT": address},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_notice_has_the_run_save_a_checkpoint_and_end(metadata: Metadata, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--executor", "threads", "--device", "cpu", "--stages", "2", "--dim", "16", "--heads", "2", "--depth", "2"]
    launch = [sys.executable, "-m", "launch", "cff-vit", *flags, "--epochs", "3000", "--run-dir", str(run)]
    process = on_spot(metadata.address, *launch)
    end = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    metadata.about_to_end = True
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert f"AWS takes this instance away: {json.dumps(_ACTION)}" in told
    assert list(run.glob("checkpoints/*/manifest.json")), told
    assert metadata.asked.count("/latest/meta-data/spot/instance-action") == len(metadata.asked)


def test_without_a_notice_the_command_ends_by_itself_and_its_status_is_passed_on(
    metadata: Metadata, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    process = on_spot(
        metadata.address, "sh", "-c", f"while [ ! -e {shlex.quote(str(asked))} ]; do sleep 0.1; done; echo done; exit 7"
    )
    end = time.monotonic() + 120
    while not metadata.asked:  # after five seconds
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    asked.touch()
    told, _ = process.communicate(timeout=60)
    assert (process.returncode, told) == (7, "done\n")


def test_sigterm_reaches_the_command(metadata: Metadata) -> None:
    process = on_spot(
        metadata.address, "sh", "-c", "trap 'echo heard; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.terminate()
    told, _ = process.communicate(timeout=60)
    assert (process.returncode, told) == (3, "heard\n")


def test_a_machine_without_metadata_is_said_once_and_the_command_goes_on() -> None:
    process = on_spot("http://127.0.0.1:1", "sh", "-c", "sleep 11")
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert told.count("warning: http://127.0.0.1:1 tells nothing of this instance") == 1


@pytest.mark.parametrize(
    ("command", "said"), [((), "give a command"), (("no-such-program",), "no-such-program: No such")]
)
def test_a_mistake_is_said_in_a_line(command: tuple[str, ...], said: str) -> None:
    process = on_spot("http://127.0.0.1:1", *command)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said in told and len(told.splitlines()) == 1
