"""Machines of a cluster that have other software are refused by name, before anything is started."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support_cli import ROOT
from workers import software
from workers.software import Software, differences, installed, remedy

ONE: Software = {
    "python": "3.12.4",
    "torch": "2.13.0+cu130",
    "ray": "2.60.0",
    "localpipe": "0.1.0",
    "commit": "0123456789",
    "code": "aaaaaaaaaa",
}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"torch": "2.12.1"}, "torch is 2.13.0+cu130 on a, c and 2.12.1 on b"),
        ({"ray": "2.59.0"}, "Ray is 2.60.0 on a, c and 2.59.0 on b"),
        ({"python": "3.11.9"}, "Python is 3.12.4 on a, c and 3.11.9 on b"),
        (
            {"code": "bbbbbbbbbb", "commit": None},
            "localpipe is 0.1.0 (commit 0123456789, files aaaaaaaaaa) on a, c and 0.1.0 (files bbbbbbbbbb) on b",
        ),
        ({"localpipe": None, "code": None}, "not installed on b"),
    ],
)
def test_what_differs_is_said_with_both_hosts(other: Software, said: str) -> None:
    (found,) = differences({"a": ONE, "b": ONE | other, "c": ONE})
    assert said in str(found)
    assert remedy([found]) == f"Install the same {found.what} on every host."


@pytest.mark.parametrize(
    "other",
    [{"torch": "2.13.0+cpu"}, {"python": "3.12.9"}, {"commit": None}],
    ids=["a build for CPUs", "a patch", "a checkout and an installation of the same files"],
)
def test_what_no_number_depends_on_may_differ(other: Software) -> None:
    assert not differences({"a": ONE, "b": ONE | other})


def test_one_letter_of_the_sources_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for room in ("pipeline", "workers", "launch"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    here = installed()
    monkeypatch.setattr(software, "_folder", lambda: tmp_path)
    assert installed()["code"] == here["code"]
    file = tmp_path / "pipeline" / "rng.py"
    file.write_text(file.read_text().replace("seed", "sead", 1))
    (found,) = differences({"a": here, "b": installed()})
    assert found.what == "localpipe"
