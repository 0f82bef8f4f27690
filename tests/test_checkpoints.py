"""Checkpoints as files: written whole or not at all beside the training, and read with suspicion."""

from __future__ import annotations

import copy
import errno
import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoints.folder import MANIFEST, CheckpointFolder, DamagedError
from pipeline.checkpoints.saver import SavedFile, Saver
from pipeline.config.interval import Interval, read_interval
from pipeline.errors import UserError
from pipeline.layers.state import Snapshot
from pipeline.methods.adamw import AdamW, load_optimizer
from pipeline.runtime.checkpointing import Pacer
from pipeline.runtime.passes import Cut
from pipeline.versions import Versions

TENSORS = {
    "matrix": torch.randn(50, 30),
    "turned": torch.randn(5, 7).T,
    "half": torch.randn(3).bfloat16(),
    "number": torch.tensor(3),
    "nothing": torch.zeros(0),
    "flags": torch.tensor([True, False]),
    "double": torch.randn(2, 1, 2, dtype=torch.float64),
}
VALUES = {"layer": 1, "skews": [0, 1], "loss": float("inf"), "none": None, "text": "Größe"}


@pytest.fixture
def saver(tmp_path: Path) -> Any:
    made = Saver(tmp_path)
    yield made
    made.close()


def saved(saver: Saver, key: str, files: dict[str, Snapshot]) -> list[SavedFile]:
    saver.save(key, files)
    assert saver.wait(60)
    return saver.take()


def whole(folder: Path, *keys: str) -> CheckpointFolder:
    """A folder with these checkpoints."""
    found = CheckpointFolder(folder)
    for key in keys:
        found.seal(key, {"cut": 1}, [found.write(key, "layer-1.safetensors", Snapshot(dict(TENSORS), dict(VALUES)))])
    return found


def test_what_is_saved_is_read_back_bit_for_bit(saver: Saver, tmp_path: Path) -> None:
    files = saved(saver, "a", {"layer-1.safetensors": Snapshot(TENSORS, VALUES), "layer-2.safetensors": Snapshot()})
    assert [(file.key, file.name, file.error) for file in files] == [
        ("a", "layer-1.safetensors", ""),
        ("a", "layer-2.safetensors", ""),
    ]
    folder = CheckpointFolder(tmp_path)
    folder.verify(folder.seal("a", {}, files))
    read = folder.read("a", "layer-1.safetensors")
    assert read.values == VALUES
    assert read.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read.tensors[name].dtype == tensor.dtype
        assert torch.equal(read.tensors[name], tensor)


def test_tensors_may_change_once_they_are_handed_over(saver: Saver, tmp_path: Path) -> None:
    weights = torch.zeros(1 << 20)
    for number in range(3):
        saver.save(str(number), {"w": Snapshot({"w": weights})})
        weights += 1
    assert saver.wait(60)
    found = [CheckpointFolder(tmp_path).read(str(number), "w").tensors["w"] for number in range(3)]
    assert [float(one[0]) for one in found] == [0, 1, 2]
    assert all((one == one[0]).all() for one in found)


def test_a_larger_state_than_before_fits(saver: Saver, tmp_path: Path) -> None:
    for size in (10, 100_000, 7):
        (file,) = saved(saver, str(size), {"w": Snapshot({"w": torch.arange(size)})})
        assert not file.error
        assert torch.equal(CheckpointFolder(tmp_path).read(str(size), "w").tensors["w"], torch.arange(size))


def test_a_folder_that_cannot_be_written_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    saver = Saver(tmp_path / "file")
    (file,) = saved(saver, "a", {"w": Snapshot({"w": torch.zeros(3)})})
    assert file.error == "Not a directory"
    saver.close()


def test_a_full_disk_is_said_and_leaves_no_part(saver: Saver, tmp_path: Path) -> None:
    """A limit on the size of the writer's files stands for the disk's."""
    small, large = ({"w": Snapshot({"w": torch.zeros(size)})} for size in (100, 1 << 16))
    (first,) = saved(saver, "small", small)
    assert saver._process is not None
    resource.prlimit(saver._process.pid, resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    (file,) = saved(saver, "a", large)
    (last,) = saved(saver, "again", small)
    assert not first.error
    assert "too large" in file.error.lower()
    assert not last.error, "a later one is tried again"
    assert list((tmp_path / "a").iterdir()) == []


def test_where_there_is_no_memory_for_a_copy_it_is_said_and_the_next_one_is_tried(
    saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Symptom: the next checkpoint waited for this one for ever."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", no_memory)
        assert [file.error for file in saved(saver, "a", {"w": Snapshot(TENSORS)})] == ["Cannot allocate memory"]
    assert [file.error for file in saved(saver, "b", {"w": Snapshot(TENSORS)})] == [""]


def no_memory(*_: object) -> None:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def test_a_writer_that_is_killed_is_replaced(saver: Saver, tmp_path: Path) -> None:
    (first,) = saved(saver, "a", {"w": Snapshot({"w": torch.zeros(3)})})
    assert saver._process is not None
    os.kill(saver._process.pid, signal.SIGKILL)
    saver._process.wait()
    (second,) = saved(saver, "b", {"w": Snapshot({"w": torch.zeros(3)})})
    assert not first.error
    assert "ended with status -9" in second.error
    (third,) = saved(saver, "c", {"w": Snapshot({"w": torch.zeros(3)})})
    assert not third.error


def test_a_disk_that_stands_still_costs_a_checkpoint_not_the_training(
    saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer is stopped, as one is that waits for a file server. Symptom: the stage waited without limit."""
    saved(saver, "a", {"w": Snapshot({"w": torch.zeros(3)})})
    assert saver._process is not None
    monkeypatch.setattr("pipeline.checkpoints.saver._BEFORE", 0.1)
    os.kill(saver._process.pid, signal.SIGSTOP)
    try:
        for key in ("b", "c"):
            saver.save(key, {"w": Snapshot({"w": torch.ones(3)})})
        (late,) = saver.take()
        assert (late.key, late.error) == ("c", "the one before was still being written after 0.1 s")
    finally:
        os.kill(saver._process.pid, signal.SIGCONT)
    assert saver.wait(60)
    assert [(file.key, file.error) for file in saver.take()] == [("b", "")]
    assert [file.error for file in saved(saver, "d", {"w": Snapshot({"w": torch.zeros(3)})})] == [""]


def test_the_writer_ends_with_whom_it_writes_for(tmp_path: Path) -> None:
    saver = Saver(tmp_path)
    saved(saver, "a", {"w": Snapshot({"w": torch.zeros(3)})})
    assert saver._process is not None
    process = saver._process
    saver.close()
    assert process.wait(30) == 0


def test_only_the_newest_and_the_chosen_stay(tmp_path: Path) -> None:
    folder = whole(tmp_path, "1", "2", "3", "4", "6")
    (tmp_path / "0").mkdir()  # never became whole
    (tmp_path / "5").mkdir()
    (tmp_path / "7").mkdir()  # is being written
    folder.keep_newest(2, besides=["2"])
    assert sorted(one.name for one in tmp_path.iterdir()) == ["2", "4", "6", "7"]
    assert folder.whole() == ["2", "4", "6"]


def test_a_checkpoint_without_its_manifest_is_not_there(tmp_path: Path) -> None:
    folder = whole(tmp_path, "1", "2")
    (tmp_path / "2" / MANIFEST).unlink()
    assert folder.whole() == ["1"]
    assert CheckpointFolder(tmp_path / "nowhere").whole() == []


def test_files_that_were_written_where_nobody_sees_them_make_no_checkpoint(tmp_path: Path) -> None:
    """As by a stage on a machine that shares no storage with the launching one."""
    folder = CheckpointFolder(tmp_path)
    file = folder.write("1", "layer-1.safetensors", Snapshot())
    with pytest.raises(DamagedError, match=r"layer-2\.safetensors is missing"):
        folder.seal("1", {}, [file, SavedFile("1", "layer-2.safetensors", "00", 7)])
    assert folder.whole() == []


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])


def changed(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("layer-1.safetensors", cut_short, "bytes of"),
        ("layer-1.safetensors", changed, "other bytes than were written"),
        ("layer-1.safetensors", Path.unlink, "is missing"),
        (MANIFEST, cut_short, "manifest cannot be read"),
        (MANIFEST, lambda file: file.write_text("[" * 100_000), "manifest cannot be read"),
        (MANIFEST, lambda file: file.write_text('{"format": 1}'), "manifest cannot be read"),
        (MANIFEST, lambda file: file.write_text('{"format": 1, "files": 3}'), "manifest cannot be read"),
        (
            MANIFEST,
            lambda file: file.write_text('{"format": 1, "files": {"../x": {"sha256": "", "bytes": 0}}}'),
            "outside of it",
        ),
    ],
)
def test_the_newest_that_is_undamaged_is_found(tmp_path: Path, name: str, damage: Any, said: str) -> None:
    folder, warned = whole(tmp_path, "1", "2"), list[str]()
    damage(tmp_path / "2" / name)
    found = folder.newest(passed_over=warned.append)
    assert found is not None and found.key == "1"
    (warning,) = warned
    assert said in warning and str(tmp_path / "2") in warning


def test_a_newer_format_is_no_damage(tmp_path: Path) -> None:
    folder = whole(tmp_path, "1", "2")
    manifest = tmp_path / "2" / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2}))
    with pytest.raises(UserError, match=r"format 2; this version reads 1\. Go on with the version that wrote it"):
        folder.newest(passed_over=pytest.fail)


def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "w").write_bytes(b"\x80\x04\x95 a pickle, perhaps")
    with pytest.raises(DamagedError, match="w cannot be read"):
        CheckpointFolder(tmp_path).read("a", "w")


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("500", Interval(steps=500)),
        ("30s", Interval(seconds=30)),
        ("5m", Interval(seconds=300)),
        ("2h", Interval(seconds=7200)),
        ("off", None),
    ],
)
def test_intervals_are_read(text: str, interval: Interval | None) -> None:
    assert read_interval(text) == interval


@pytest.mark.parametrize("text", ["", "0", "0m", "-3", "5 m", "5d", "1.5h", "never", "9" * 40, "５m"])
def test_what_is_no_interval_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"`checkpoint_every` .*give a number of training steps such as 500"):
        read_interval(text)


def test_a_checkpoint_is_due_every_so_many_steps_and_when_it_is_asked_for() -> None:
    pacer = Pacer(Interval(steps=3))
    assert [pacer.due() for _ in range(10)] == [False, False, False, True, False, False, True, False, False, True]
    pacer.ask()
    assert [pacer.due() for _ in range(4)] == [True, False, False, True]  # a new interval begins


def test_a_checkpoint_is_due_after_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pacer = Pacer(Interval(seconds=10))
    assert not pacer.due()
    now = 109.9
    assert not pacer.due()
    now = 110.0
    assert pacer.due()
    assert not pacer.due()
    pacer = Pacer(None)
    now = 10_000.0
    assert not pacer.due()
    pacer.ask()
    assert pacer.due()


cuts = st.builds(
    Cut,
    st.lists(st.integers(0, 900), max_size=9).map(tuple),
    st.integers(0, 999_999),
    st.integers(0, 99_999_999),
)


@given(first=cuts, second=cuts)
def test_names_sort_as_places_do_and_name_them(first: Cut, second: Cut) -> None:
    order = [(len(cut.restored), cut.passes, cut.steps) for cut in (first, second)]
    assert (first.key < second.key) == (order[0] < order[1])
    assert Cut.of_key(first.key, first.restored) == first


@pytest.mark.parametrize("mode", ["last", "in-turn", "shared-mean", "shared-sum"])
@pytest.mark.parametrize("exact", [False, True])
def test_a_version_is_complete_at_a_step_as_counted_one_by_one(mode: Any, exact: bool) -> None:
    for layers in (1, 2, 3, 5):
        for steps in (1, 2, 3, 7):
            versions = Versions(mode=mode, lag=1, exact=exact, num_layers=layers, steps_per_epoch=steps)
            for step in range(3 * steps + 1):
                counted = 0
                while all(of < step for _, of in versions.updates(counted)):
                    counted += 1
                assert versions.complete(step) == counted


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: AdamW(parameters, lr=0.1, fused=True),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),  # notes nothing, or that there is nothing
        lambda parameters: torch.optim.NAdam(parameters, lr=0.1),
    ],
)
def test_an_optimizer_goes_on_from_what_it_noted(make: Any) -> None:
    def step(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, number: int) -> None:
        parameter.grad = torch.full_like(parameter, float(number + 1))
        optimizer.step()

    whole_way = torch.nn.Parameter(torch.ones(4))
    optimizer = make([whole_way])
    for number in range(3):
        step(whole_way, optimizer, number)
    half = torch.nn.Parameter(whole_way.detach().clone())
    other = make([half])
    load_optimizer(other, {half: copy.deepcopy(dict(optimizer.state[whole_way]))})
    for number in range(3, 6):
        step(whole_way, optimizer, number)
        step(half, other, number)
    assert torch.equal(whole_way, half)
