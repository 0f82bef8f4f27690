"""What there is on this machine, as values: gathered here, judged in ``launch.doctor.checks``."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from launch.doctor import nvidia
from launch.doctor.nvidia import DriverGpu
from launch.output.summary import machine
from launch.output.versions import versions
from pipeline.config.devices import num_cores
from pipeline.data import prepare
from pipeline.data.registry import DATASETS

_SHM = Path("/dev/shm")  # noqa: S108 (the size of it is asked for, nothing is written)
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "RAY_ADDRESS", "LOCALPIPE_MAX_STEPS")


@dataclass(frozen=True, kw_only=True)
class TorchGpu:
    """A GPU that PyTorch can use.

    Attributes:
        memory: bytes.
        capability: the compute capability (major, minor).
        supported: whether this PyTorch has kernels for it.
    """

    name: str
    memory: int
    capability: tuple[int, int]
    supported: bool = True


@dataclass(frozen=True, kw_only=True)
class Machine:
    """All that is looked at. Sizes are bytes; None where the system does not say.

    Attributes:
        versions: of Python, localpipe, torch and Ray; None for one that is not installed.
        cuda, nccl: what this PyTorch is built with; None for a build for CPUs.
        driver_gpus, torch_gpus: as the driver has them, and as PyTorch can use them.
        topology: the table of ``nvidia-smi topo -m``.
        c_compiler, cxx_compiler: paths of them.
        python_headers: whether Python.h is there, which Triton compiles with.
        load: runnable programs in the mean of the last minute.
        open_files: how many a process may open.
        loopback: why a connection of this machine to itself fails; None where it does not.
        prepared: names of the data sets that are prepared here, or need not be.
        variables: those of the environment that change what a run does.
    """

    system: str
    cpu: str
    versions: dict[str, str | None]
    cuda: str | None
    nccl: str | None
    driver_gpus: tuple[DriverGpu, ...]
    torch_gpus: tuple[TorchGpu, ...]
    topology: str | None
    c_compiler: str | None
    cxx_compiler: str | None
    python_headers: bool
    cores: int
    load: float
    memory: int | None
    shared_memory: int | None
    open_files: int
    loopback: str | None
    prepared: tuple[str, ...]
    data_free: int | None
    runs_free: int | None
    variables: dict[str, str]


def look() -> Machine:
    """Looks at this machine. Takes about a second, that of importing torch apart."""
    known = machine()
    return Machine(
        system=known["system"],
        cpu=known["cpu"],
        versions=versions(),
        cuda=torch.version.cuda,
        nccl=_nccl(),
        driver_gpus=tuple(nvidia.gpus()),
        torch_gpus=tuple(_torch_gpu(number) for number in range(torch.cuda.device_count())),
        topology=nvidia.topology(),
        c_compiler=_found("CC", "gcc", "cc", "clang"),
        cxx_compiler=_found("CXX", "g++", "clang++"),
        python_headers=Path(sysconfig.get_paths()["include"], "Python.h").is_file(),
        cores=num_cores(),
        load=os.getloadavg()[0],
        memory=_memory(),
        shared_memory=shutil.disk_usage(_SHM).total if _SHM.is_dir() else None,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        loopback=_loopback(),
        prepared=tuple(name for name, facts in DATASETS.items() if facts.embedded or prepare.is_prepared(name)),
        data_free=_free(prepare.default_data_dir()),
        runs_free=_free(Path.cwd()),
        variables={name: os.environ[name] for name in _VARIABLES if os.environ.get(name)},
    )


def _torch_gpu(number: int) -> TorchGpu:
    facts: Any = torch.cuda.get_device_properties(number)
    capability = (facts.major, facts.minor)
    return TorchGpu(
        name=facts.name,
        memory=facts.total_memory,
        capability=capability,
        supported=supported(capability, torch.cuda.get_arch_list()),
    )


def supported(capability: tuple[int, int], built: Sequence[str]) -> bool:
    """Whether kernels that were built run on a GPU: machine code of its generation and no newer, or a form (PTX) that
    its driver compiles.

    Args:
        capability: the GPU's.
        built: as ``torch.cuda.get_arch_list`` names it: "sm_80", "sm_90a", "compute_90".
    """
    for name in built:
        kind, _, number = name.rstrip("af").partition("_")
        major, minor = int(number[:-1]), int(number[-1])
        if kind == "sm" and major == capability[0] and minor <= capability[1]:
            return True
        if kind == "compute" and (major, minor) <= capability:
            return True
    return False


def _nccl() -> str | None:
    if torch.version.cuda is None or not torch.distributed.is_nccl_available():
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))


def _found(variable: str, *names: str) -> str | None:
    return next((path for name in (os.environ.get(variable), *names) if name and (path := shutil.which(name))), None)


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # a system that does not know these names
        return None


def _loopback() -> str | None:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        return str(error)
    return None


def _free(folder: Path) -> int | None:
    """Bytes that are free where the folder is or would be."""
    there = next((one for one in (folder, *folder.parents) if one.exists()), None)
    return None if there is None else shutil.disk_usage(there).free
