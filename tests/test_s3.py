"""Data behind s3:// and runs copied to it, with an S3 server in a process of its own: of moto, which answers as AWS."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from pipeline.data import prepare
from pipeline.errors import UserError
from pipeline.stores import open_store
from tests.support_data import write_photos

_RUN = ["cff-vit", "--executor", "serial", "--batch-size", "4", "--dim", "16", "--heads", "2", "--depth", "2"]


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """s3fs at an empty S3, with a prepared set in s3://bucket/photos."""
    pytest.importorskip("moto", reason="needs pip install 'moto[server]'")
    s3fs = pytest.importorskip("s3fs", reason="needs pip install 'localpipe[s3]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)])
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "made-up")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    write_photos(tmp_path / "images")
    made = prepare.prepare(str(tmp_path / "images"), data_dir=tmp_path / "made")
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert server.poll() is None, "the server has ended"
            time.sleep(0.1)
        s3fs.S3FileSystem.clear_instance_cache()
        store = s3fs.S3FileSystem()
        store.mkdir("bucket")
        store.put(str(made), "bucket/photos", recursive=True)
        yield store
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.terminate()
        server.wait()


@pytest.mark.exhaustive
def test_a_run_learns_from_s3_is_copied_there_and_goes_on_from_its_copy(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("LOCALPIPE_DATA", str(tmp_path / "cache"))
    there = ["--data", "s3://bucket/photos", "--mirror", "s3://bucket/runs"]
    assert main([*_RUN, *there, "--epochs", "1", "--run-dir", str(tmp_path / "mine")]) == 0, capsys.readouterr()
    assert json.loads(s3.cat("bucket/runs/mine/summary.json"))["status"] == "finished"
    monkeypatch.chdir(tmp_path)
    assert main(["resume", "s3://bucket/runs/mine", "--epochs", "2"]) == 0, capsys.readouterr()
    assert json.loads((tmp_path / "runs" / "mine" / "summary.json").read_text())["epochs_finished"] == 2
    capsys.readouterr()

    for url, why in {
        "--data s3://bucket/none": "cannot be read (index.json: FileNotFoundError: The specified key does not exist)",
        "--data s3://nowhere/photos": "cannot be read (index.json: FileNotFoundError: The specified bucket does not",
        "--mirror s3://nowhere/runs": "there is no bucket nowhere. Make it first",
    }.items():
        assert main([*_RUN, *url.split(), "--run-dir", str(tmp_path / "another")]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {url}: {why}") and said.count("\n") == 1
    assert not s3.exists("nowhere"), "a bucket that nobody asked for"
    assert not (tmp_path / "another").exists()


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gs:// needs a package that is not .*: pip install 'localpipe\[gcs\]'"):
        open_store("gs://bucket/photos")
