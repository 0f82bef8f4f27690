"""The image of docker/Dockerfile for CPUs is built as it stands, is small, runs as nobody special, and trains.

Without an engine: buildah builds it in a chroot, on a base that debootstrap makes and that goes by the name of the one
in the Dockerfile: Debian with its own Python in place of python.org's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support_documents import ROOT

_TOOLS = ("buildah", "debootstrap", "tar")
_MISSING = [name for name in _TOOLS if shutil.which(name) is None]
_RELEASE = "bookworm"  # whose Python is the Dockerfile's
_ROOM = 12 << 30  # bytes that base, layers and image take meanwhile
_LARGEST = 2_000_000_000  # bytes
_HIDDEN = ("gcc", "cc", "g++", "make")

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as debootstrap does"),
    pytest.mark.skipif(bool(_MISSING), reason=f"needs {', '.join(_MISSING)} (Debian packages)"),
]


@dataclass(frozen=True)
class Builder:
    """buildah with a storage of its own in ``folder``."""

    folder: Path

    def __call__(self, *arguments: str) -> str:
        storage = [
            "--storage-driver",
            "vfs",
            "--root",
            str(self.folder / "storage"),
            "--runroot",
            str(self.folder / "run"),
        ]
        done = subprocess.run(["buildah", *storage, *arguments], check=False, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout.strip()

    def run(self, container: str, *command: str, **environment: str) -> str:
        """What a command prints in a container, with the image's user, folder and environment."""
        given = [f"--env={name}={value}" for name, value in environment.items()]
        return self("run", "--isolation", "chroot", *given, container, "--", *command)


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    folder = tmp_path_factory.mktemp("image")
    if shutil.disk_usage(folder).free < _ROOM:
        pytest.skip(f"needs {_ROOM >> 30} GiB of disk")
    made = subprocess.run(
        [
            "debootstrap",
            "--variant=minbase",
            "--include=python3,python3-pip,ca-certificates",
            _RELEASE,
            folder / "base",
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    if made.returncode != 0:
        pytest.skip(f"debootstrap made no base: {made.stdout.strip().splitlines()[-1:]}")
    base = folder / "base"
    (base / "usr/bin/python").symlink_to("python3")
    for marker in base.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        marker.unlink()
    builder = Builder(folder)
    container = builder("from", "scratch")
    builder("add", "--quiet", container, str(base), "/")
    builder("commit", "--quiet", container, _base_of_the_dockerfile())
    builder("rm", container)
    shutil.rmtree(base)
    yield builder
    builder("rm", "--all")
    builder("rmi", "--all", "--force")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def container(builder: Builder) -> str:
    """A container of the image, built as the Dockerfile says."""
    mounts = [f"--volume={place}:{inside}:ro" for place, inside in _of_pip_and_apt(builder.folder)]
    command = ["--quiet", "--isolation", "chroot", "--pull-never", *mounts, "--file", "docker/Dockerfile"]
    builder("build", *command, "--tag", "localpipe", ".")
    return builder("from", "--pull-never", "localpipe")


def _base_of_the_dockerfile() -> str:
    text = (ROOT / "docker/Dockerfile").read_text()
    python = re.findall(r"^ARG PYTHON=(\S+)", text, re.MULTILINE)[0]
    assert "FROM python:${PYTHON}-slim AS base" in text
    return f"docker.io/library/python:{python}-slim"


def _of_pip_and_apt(folder: Path) -> list[tuple[Path, Path]]:
    """This machine's ways to packages, for the build: its settings of pip in one file, and folders that those name."""
    listed = subprocess.run(["pip", "config", "list"], check=True, capture_output=True, text=True).stdout
    settings = dict(re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
    places = {
        Path(word.removeprefix("file://")) for value in settings.values() for word in value.split() if "/" in word
    }
    # An index in a folder names the files next to it.
    known = {place.parent if place.name == "simple" else place for place in places if place.is_absolute()}
    (folder / "pip.conf").write_text(
        "\n".join(["[global]", *(f"{name} = {value}" for name, value in settings.items())])
    )
    mounted = [
        (folder / "pip.conf", Path("/etc/pip.conf")),
        *((place, place) for place in sorted(known) if place.exists()),
    ]
    return [*mounted, (Path("/etc/apt/apt.conf.d"), Path("/etc/apt/apt.conf.d"))]


def test_it_is_smaller_than_2_gb_and_has_no_compiler(builder: Builder, container: str) -> None:
    found = builder.run(
        container, "sh", "-c", f"id --user; for name in {' '.join(_HIDDEN)}; do command -v $name; done; true"
    )
    assert found.splitlines() == ["1000"]
    place = builder("mount", container)
    size = int(subprocess.check_output(["du", "-sxB1", place], text=True).split()[0])
    builder("umount", container)
    assert 500_000_000 < size < _LARGEST


def test_it_has_the_pinned_versions(builder: Builder, container: str) -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    there = builder.run(container, "python", "-m", "pip", "list", "--format=freeze")
    got = dict(re.findall(r"^([\w.-]+)==(\S+)$", there, re.MULTILINE))
    for name in ("ray", "numpy", "safetensors", "torch", "tyro"):
        assert got[name].split("+")[0] == pins[name].split("+")[0]


def test_it_trains_in_two_stages(builder: Builder, container: str) -> None:
    flags = ["--stages", "2", "--device", "cpu", "--epochs", "1"]
    told = builder.run(container, "launch", "cff-vit", *flags, LOCALPIPE_MAX_STEPS="2")
    assert "2 stages on cpu (ray)" in told
    assert "run folder: runs/cff-vit-" in told
