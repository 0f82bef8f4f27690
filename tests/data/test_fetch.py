"""Downloads from a server on this machine: whole, resumed, refused."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline.data.fetch import UnreachableError, download
from pipeline.data.sources.base import silent

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Handler(http.server.BaseHTTPRequestHandler):
    ranges = True
    break_at: int | None = None  # bytes after which the first connection breaks
    seen: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        cls = type(self)
        asked = self.headers.get("Range")
        cls.seen.append(asked)
        if self.path != "/file":
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and cls.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end, cls.break_at = cls.break_at or len(CONTENT), None
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Handler, "seen", [])
    monkeypatch.setattr(Handler, "ranges", True)
    monkeypatch.setattr(Handler, "break_at", None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_a_file_arrives_whole_and_reports_progress(server: str, tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    download(f"{server}/file", tmp_path / "file", lambda what, done, total: reports.append((done, total)))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert reports[-1] == (len(CONTENT), len(CONTENT))
    assert not (tmp_path / "file.part").exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(server: str, tmp_path: Path, ranges: bool) -> None:
    Handler.ranges = ranges
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    download(f"{server}/file", tmp_path / "file", silent)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert Handler.seen == ["bytes=1000-"]


def test_a_broken_connection_is_taken_up_again(server: str, tmp_path: Path) -> None:
    Handler.break_at = 300_000
    download(f"{server}/file", tmp_path / "file", silent)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert Handler.seen == [None, "bytes=300000-"]


def test_a_part_that_is_too_long_is_begun_anew(server: str, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT + b"more")
    download(f"{server}/file", tmp_path / "file", silent)
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("url", ["{server}/missing", "http://127.0.0.1:9/file", "http://name.invalid/file"])
def test_what_cannot_be_had_is_named(server: str, tmp_path: Path, url: str) -> None:
    with pytest.raises(UnreachableError, match=r"file|missing"):
        download(url.format(server=server), tmp_path / "file", silent)
    assert not (tmp_path / "file").exists()
