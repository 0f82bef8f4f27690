"""A run folder is copied elsewhere while the run goes on; from the copy alone the run goes on on another machine."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from launch import resume, train
from launch.output.mirror import Mirror, check_mirror, fetch
from pipeline.checkpoints.folder import CheckpointFolder
from pipeline.errors import UserError
from tests.support_cli import launch

_SMALL: dict[str, Any] = {
    "dim": 16,
    "heads": 2,
    "depth": 2,
    "batch_size": 64,
    "readout_epochs": 1,
    "executor": "serial",
    "quiet": True,
}
_SAME = ("model.safetensors", "last.safetensors", "steps.safetensors", "predictions.csv")


@pytest.fixture
def store() -> Iterator[MemoryFileSystem]:
    """A store that is no disk. Its files go with the test."""
    yield fsspec.filesystem("memory")
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def run_in(folder: Path, **files: str) -> Path:
    """A run folder with these files, "/" written as "__"."""
    for name, content in files.items():
        file = folder / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return folder


def test_a_killed_run_goes_on_where_only_its_copy_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"file://{tmp_path}/store"
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    flags = ["--dim", "16", "--heads", "2", "--depth", "2", "--batch-size", "64", "--readout-epochs", "1"]
    begun = launch(
        here, "cff-vit", *flags, "--executor", "serial", "--epochs", "3", "--checkpoint-every", "5", "--mirror", url,
        "--run-dir", str(here / "run"),
    )  # fmt: skip
    copied = CheckpointFolder(tmp_path / "store" / "run" / "checkpoints")
    while (
        copied.newest(passed_over=lambda _: None) is None
    ):  # copies are made beside the training, and may be under way
        assert begun.process.poll() is None, begun.text()
        time.sleep(0.02)
    begun.stop(signal.SIGKILL)
    begun.finish()
    assert f"copied to {url}/run" in begun.text()
    shutil.rmtree(here)

    monkeypatch.chdir(there)
    more = resume(f"{url}/run", quiet=True)
    assert more.status == "finished" and more.folder == Path("runs/run")
    whole = train("cff-vit", **_SMALL, epochs=3, run_dir=tmp_path / "whole")
    for name in _SAME:
        expected = (whole.folder / name).read_bytes()
        assert (more.folder / name).read_bytes() == expected, name
        assert (tmp_path / "store" / "run" / name).read_bytes() == expected, name
    left = [path.relative_to(tmp_path / "store" / "run").as_posix() for path in (copied.path).rglob("*.safetensors")]
    ours = [path.relative_to(more.folder).as_posix() for path in (more.folder / "checkpoints").rglob("*.safetensors")]
    assert sorted(left) == sorted(ours), "what the run removed is gone there too"


def test_whatever_stops_a_copy_there_is_no_half_checkpoint_and_the_next_one_mends_it(
    tmp_path: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("config.json", "checkpoints__0__a", "checkpoints__0__z", "checkpoints__0__manifest.json")
    run = run_in(tmp_path / "run", **dict.fromkeys(names, "{}"))
    put, left = MemoryFileSystem.put_file, 0

    def put_some(self: MemoryFileSystem, *arguments: Any, **options: Any) -> None:
        nonlocal left
        if left == 0:
            raise RuntimeError("the store is out of breath")
        left -= 1
        put(self, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_some)
    before = {"/runs/run/config.json", "/runs/run/checkpoints/0/a", "/runs/run/checkpoints/0/z"}
    manifest = "/runs/run/checkpoints/0/manifest.json"
    for count in range(5):
        MemoryFileSystem.store.clear()
        left, said = count, list[str]()
        with Mirror("memory://runs", run, said.append):
            pass
        there = set(store.find("/runs"))
        assert len(there) == min(count, 4)
        assert manifest not in there or before < there
        assert said == (
            [] if count == 4 else [
                "memory://runs/run: could not be copied to (RuntimeError: the store is out of breath). The run goes on."
            ]
        )  # fmt: skip


def test_a_file_that_goes_meanwhile_is_left_out_and_a_store_that_goes_is_said(
    tmp_path: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(tmp_path / "run", **{"a": "1", "b": "2", "config.json": "{}"})
    put = MemoryFileSystem.put_file

    def put_some(self: MemoryFileSystem, source: str, target: str, **options: Any) -> None:
        if source.endswith("/a"):
            Path(source).unlink()
            raise FileNotFoundError(source)
        put(self, source, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_some)
    with Mirror("memory://runs", run, pytest.fail):
        pass
    assert set(store.find("/runs")) == {"/runs/run/b", "/runs/run/config.json"}

    def put_none(self: MemoryFileSystem, *arguments: Any, **options: Any) -> None:
        raise FileNotFoundError("the bucket")

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_none)
    said: list[str] = []
    with Mirror("memory://runs", run, said.append):
        pass
    assert said == ["memory://runs/run: could not be copied to (FileNotFoundError: the bucket). The run goes on."]


def test_what_changed_is_copied_again_and_old_checkpoints_go(tmp_path: Path, store: MemoryFileSystem) -> None:
    run = run_in(tmp_path / "run", **{"metrics.jsonl": "1\n", "checkpoints__1__manifest.json": "{}", ".lock": ""})
    other = "/runs/run/notes.txt"
    store.pipe_file(other, b"somebody else's")
    for metrics, key in (("1\n", "1"), ("1\n2\n", "2")):
        run_in(run, **{"metrics.jsonl": metrics, f"checkpoints__{key}__manifest.json": "{}"})
        if key == "2":
            shutil.rmtree(run / "checkpoints" / "1")
        with Mirror("memory://runs", run, pytest.fail):
            pass
        assert store.cat_file("/runs/run/metrics.jsonl") == metrics.encode()
        assert set(store.find("/runs")) == {
            other, "/runs/run/metrics.jsonl", f"/runs/run/checkpoints/{key}/manifest.json"
        }  # fmt: skip


def test_copying_holds_no_step_up(tmp_path: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that takes for ever: who asks for copies does not wait, and one copy is under way at a time."""
    run = run_in(tmp_path / "run", **{"config.json": "{}"})
    begun, go_on, most = threading.Semaphore(0), threading.Event(), []

    def put_slowly(self: MemoryFileSystem, *arguments: Any, **options: Any) -> None:
        most.append(threading.current_thread().name)
        begun.release()
        assert go_on.wait(60)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_slowly)
    with Mirror("memory://runs", run, pytest.fail) as mirror:
        mirror.copy()
        assert begun.acquire(timeout=60)
        for _ in range(100):
            mirror.copy()
        assert most == ["mirror"]
        go_on.set()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("elsewhere", r"`mirror` elsewhere: is no URL. Give one such as s3://bucket/runs"),
        ("nowhere://runs", r"nowhere://runs: cannot be reached \(ValueError: Protocol not known: nowhere"),
        ("file:///proc/runs", r"`mirror` file:///proc/runs: cannot be written \(\w+Error: "),
    ],
)
def test_a_url_that_cannot_be_copied_to_is_refused_before_anything_is_done(url: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        train("cff-vit", **_SMALL, mirror=url, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_run_is_written_over_there_or_here(tmp_path: Path, store: MemoryFileSystem) -> None:
    store.pipe_file("/runs/mine/config.json", b"{}")
    with pytest.raises(UserError, match=r"`mirror` memory://runs: has a run mine. Give another `run_dir`."):
        check_mirror("memory://runs", new="mine")
    check_mirror("memory://runs", new="yours")
    assert store.find("/runs") == ["/runs/mine/config.json"], "nothing is left of looking"
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match=r"mine is here: `launch resume .*mine` goes on with it"):
        fetch("memory://runs/mine", tmp_path)
    with pytest.raises(UserError, match=r"memory://runs/none: holds no run. Give what `launch` said it copies to"):
        fetch("memory://runs/none/", tmp_path)


def test_a_copy_cannot_write_outside_of_the_run_folder(
    tmp_path: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pipe_file("/runs/bad/config.json", b"{}")
    monkeypatch.setattr(store, "find", lambda _: ["/runs/bad/config.json", "/runs/bad/../../outside"])
    with pytest.raises(UserError, match=r"names a file outside of its folder"):
        fetch("memory://runs/bad", tmp_path / "in")
    assert not list(tmp_path.glob("outside"))
