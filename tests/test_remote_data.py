"""A data set behind a URL: copied once, checked, and taken up again where a copy was cut off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from launch.cli import main
from pipeline.data import prepare
from pipeline.data.index import DataIndex
from pipeline.errors import UserError
from tests.support_data import write_photos


class Site:
    """A web server of a folder. ``asked``: the files that were asked for."""

    def __init__(self, folder: Path) -> None:
        site, self.folder, self.asked = self, folder, list[str]()

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path.rsplit("/", 1)[1])
                super().do_GET()

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server.server_port}/photos"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A prepared folder "photos" behind http."""
    write_photos(tmp_path / "images")
    made = prepare.prepare(str(tmp_path / "images"), data_dir=tmp_path / "made")
    shutil.copytree(made, tmp_path / "www" / "photos")
    found = Site(tmp_path / "www")
    thread = Thread(target=found.server.serve_forever)
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


def shards_of(folder: Path) -> list[str]:
    return [shard.file for split in DataIndex.load(folder).splits.values() for shard in split.shards]


def test_a_set_is_copied_once_and_is_the_same(site: Site, tmp_path: Path) -> None:
    copy = prepare.resolve(site.url, data_dir=tmp_path / "cache")
    assert DataIndex.load(copy) == DataIndex.load(site.folder / "photos")
    assert all((copy / name).read_bytes() == (site.folder / "photos" / name).read_bytes() for name in shards_of(copy))
    assert sorted(site.asked) == sorted(["index.json", *shards_of(copy)])
    site.asked.clear()
    assert prepare.resolve(site.url, data_dir=tmp_path / "cache") == copy
    assert site.asked == ["index.json"]


def test_a_set_that_changed_there_is_copied_anew(site: Site, tmp_path: Path) -> None:
    copy = prepare.resolve(site.url, data_dir=tmp_path / "cache")
    write_photos(tmp_path / "others", seed=1)
    shutil.rmtree(site.folder / "photos")
    shutil.copytree(prepare.prepare(str(tmp_path / "others"), data_dir=tmp_path / "made"), site.folder / "photos")
    assert prepare.resolve(site.url, data_dir=tmp_path / "cache") == copy
    assert DataIndex.load(copy) == DataIndex.load(site.folder / "photos")


def test_a_damaged_shard_is_refused_and_what_came_whole_is_kept(site: Site, tmp_path: Path) -> None:
    *_, last = shards_of(site.folder / "photos")
    shard = site.folder / "photos" / last
    good = shard.read_bytes()
    shard.write_bytes(good[:600] + bytes([good[600] ^ 1]) + good[601:])
    with pytest.raises(UserError, match=f"{last} is corrupt .its sha256 is not the index's.. It was deleted here"):
        prepare.resolve(site.url, data_dir=tmp_path / "cache")
    shard.write_bytes(good)
    site.asked.clear()
    copy = prepare.resolve(site.url, data_dir=tmp_path / "cache")
    assert sorted(site.asked) == sorted(["index.json", last])
    assert [path.name for path in copy.parent.iterdir() if path.is_dir()] == [copy.name]


def test_what_cannot_be_read_is_said_in_one_sentence(site: Site, tmp_path: Path, capsys: Any) -> None:
    for url, why in {
        f"{site.url}/none": f"--data {site.url}/none: cannot be read (",
        "memory://nothing/there": "--data memory://nothing/there: cannot be read (index.json: FileNotFoundError",
        "nosuch://host/shards": "nosuch://host/shards: cannot be reached (ValueError: Protocol not known: nosuch",
    }.items():
        assert main(["cff-vit", "--data", url, "--data-dir", str(tmp_path / "cache"), "--executor", "serial"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {why}") and said.count("\n") == 1
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix != ".lock"]


def test_an_index_that_is_none_is_refused(site: Site, tmp_path: Path) -> None:
    (site.folder / "photos" / "index.json").write_text(json.dumps({"hello": 1}))
    with pytest.raises(UserError, match="format version"):
        prepare.resolve(site.url, data_dir=tmp_path / "cache")


def test_any_store_of_fsspec_will_do(site: Site, tmp_path: Path) -> None:
    store: MemoryFileSystem = fsspec.filesystem("memory")
    store.put(str(site.folder / "photos"), "/bucket/photos", recursive=True)
    try:
        copy = prepare.resolve("memory://bucket/photos", data_dir=tmp_path / "cache")
        assert DataIndex.load(copy) == DataIndex.load(site.folder / "photos")
    finally:
        MemoryFileSystem.store.clear()


def test_a_run_learns_from_a_url_and_keeps_it_in_its_settings(site: Site, tmp_path: Path) -> None:
    flags = ["--epochs", "1", "--max-steps", "2", "--batch-size", "4", "--dim", "16", "--heads", "2", "--depth", "2"]
    run = tmp_path / "run"
    arguments = ["cff-vit", "--data", site.url, "--executor", "serial", "--run-dir", str(run), *flags]
    assert main([*arguments, "--data-dir", str(tmp_path / "cache")]) == 0
    assert json.loads((run / "config.json").read_text())["settings"]["data"]["data"] == site.url
