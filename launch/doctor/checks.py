"""What a machine lacks for a run, and what to do about it: a line for each thing looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from launch.doctor.machine import Machine
from launch.doctor.nvidia import parse_links
from launch.output.console import counted
from pipeline.config.devices import TENSOR_CORES

_GIB, _MIB = 2**30, 2**20
_PYTHONS, _TORCH, _RAY = ((3, 11), (3, 13)), (2, 6), (2, 50)  # as pyproject.toml has them
_OBJECT_STORE = 256 * _MIB  # workers.cluster
_OPEN_FILES = 1024
_BUSY = 0.3  # of the cores, by the load of the last minute
_ROOM = _GIB  # free bytes below which runs and data sets soon end with a full disk
_IN_USE = 1024  # MiB of a GPU that another program holds

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        status: ``problem`` where no run can work; ``warning`` where some cannot, or are slow.
        text: what there is.
        advice: what to do; "" where nothing is to be done.
    """

    name: str
    status: Status
    text: str
    advice: str = ""


def check(machine: Machine) -> list[Finding]:
    """A finding for each thing, in the order in which they are needed."""
    return [*_software(machine), *_gpus(machine), *_compiler(machine), *_system(machine), *_data(machine)]


def _found(name: str, text: str, *troubles: tuple[bool, str], status: Status = "warning") -> Finding:
    """``ok``, unless one of the troubles is so: (whether, what to do)."""
    advice = " ".join(what for so, what in troubles if so)
    return Finding(name=name, status=status if advice else "ok", text=text, advice=advice)


def _software(machine: Machine) -> Iterator[Finding]:
    known = machine.versions
    python, torch, ray = (known.get(name) for name in ("python", "torch", "ray"))
    low, high = _PYTHONS
    asked = f"Install one of Python {low[0]}.{low[1]} to {high[0]}.{high[1]}."
    fits = low <= _version(python) <= high
    yield _found("Python", python or "unknown", (not fits, asked), status="problem")
    text = f"{torch}, {'built for the CPU' if machine.cuda is None else f'built for CUDA {machine.cuda}'}"
    too_old = _version(torch) < _TORCH
    advice = f"Install PyTorch {_TORCH[0]}.{_TORCH[1]} or newer: pytorch.org says how."
    yield _found("PyTorch", text, (too_old, advice), status="problem")
    advice = f"Install Ray {_RAY[0]}.{_RAY[1]} or newer, or use --executor threads, which needs none."
    yield _found("Ray", ray or "not installed", (_version(ray) < _RAY, advice), status="problem")


def _gpus(machine: Machine) -> Iterator[Finding]:
    if not machine.torch_gpus:
        yield _no_gpu(machine)
        return
    drivers = sorted({gpu.driver for gpu in machine.driver_gpus})
    yield _found("CUDA", f"{machine.cuda}, driver {', '.join(drivers) or 'unknown'}, NCCL {machine.nccl or 'none'}")
    hidden = machine.variables.get("CUDA_VISIBLE_DEVICES")
    for number, gpu in enumerate(machine.torch_gpus):
        major, minor = gpu.capability
        text = f"{gpu.name}, {gpu.memory / _GIB:.0f} GiB, compute capability {major}.{minor}"
        needed = ".".join(map(str, TENSOR_CORES))
        older = f"It has no units for bf16 and TF32: --precision bf16 and tf32 need {needed}. Use fp32."
        if not gpu.supported:
            advice = "This PyTorch has no kernels for it: install a build that has, or --device cpu."
            yield Finding(name=f"GPU {number}", status="problem", text=text, advice=advice)
            continue
        # Numbers of the driver and of PyTorch agree where all GPUs are visible.
        seen = len(machine.driver_gpus) == len(machine.torch_gpus) and hidden is None
        used = (machine.driver_gpus[number].used or 0) if seen else 0
        held = f"Programs hold {used:,} MiB of it: figures will be lower, and memory may run out."
        yield _found(f"GPU {number}", text, (gpu.capability < TENSOR_CORES, older), (used > _IN_USE, held))
    links = parse_links(machine.topology or "")
    if links:
        said = ", ".join(f"{first}–{second} {link}" for (first, second), link in links.items())
        slow = "NV" not in said and "SYS" in said
        yield _found("links", said, (slow, "Activations between these GPUs go through the CPUs' link, the slowest."))


def _no_gpu(machine: Machine) -> Finding:
    if not machine.driver_gpus:
        return Finding(name="GPU", status="ok", text="none: runs take the CPU")
    text = f"{counted(len(machine.driver_gpus), 'GPU')} by nvidia-smi, and PyTorch can use none"
    if machine.cuda is None:
        advice = "PyTorch is the build for the CPU: `make install ACCELERATOR=cuda`, or as pytorch.org says."
    else:
        advice = f"The driver may be too old for CUDA {machine.cuda}, or CUDA_VISIBLE_DEVICES hides the GPU."
    return Finding(name="GPU", status="warning", text=text, advice=advice)


def _compiler(machine: Machine) -> Iterator[Finding]:
    """What --compile on needs: Triton on a GPU a C compiler, PyTorch on a CPU one for C++, both Python's headers."""
    gpu = bool(machine.torch_gpus)
    compiler = machine.c_compiler if gpu else machine.cxx_compiler
    language, package = ("C", "gcc") if gpu else ("C++", "g++")
    absent = f"--compile on needs a {language} compiler (Debian: apt install {package})."
    yield _found("compiler", compiler or f"no {language} compiler", (compiler is None, absent))
    headers = "--compile on compiles against them (Debian: apt install python3-dev)."
    text = "Python.h is there" if machine.python_headers else "no Python.h"
    yield _found("Python headers", text, (not machine.python_headers, headers))


def _system(machine: Machine) -> Iterator[Finding]:
    memory = "" if machine.memory is None else f", {machine.memory / _GIB:.0f} GiB of memory"
    busy = machine.load > _BUSY * machine.cores
    text = f"{counted(machine.cores, 'core')} of {machine.cpu}{memory}, load {machine.load:.1f}"
    yield _found("CPU", text, (busy, "Other programs use this machine: figures will be lower and spread wider."))
    if machine.shared_memory is not None:
        small = "Ray's objects go to its temporary folder, which is slower. For docker run: --shm-size 1g."
        text = f"{machine.shared_memory / _MIB:,.0f} MiB"
        yield _found("shared memory", text, (machine.shared_memory < _OBJECT_STORE, small))
    few = f"Ray opens many: ulimit -n {8 * _OPEN_FILES}."
    yield _found("open files", f"at most {machine.open_files:,}", (0 <= machine.open_files < _OPEN_FILES, few))
    text = "works" if machine.loopback is None else machine.loopback
    advice = "Ray and gloo connect this machine to itself at 127.0.0.1: let the firewall or sandbox allow it."
    yield _found("loopback", text, (machine.loopback is not None, advice), status="problem")
    if address := machine.variables.get("RAY_ADDRESS"):
        text = f"RAY_ADDRESS={address}: runs join this cluster"
        yield _found("environment", text, (True, "Unset it to run on this machine alone."))
    if steps := machine.variables.get("LOCALPIPE_MAX_STEPS"):
        yield _found("environment", f"LOCALPIPE_MAX_STEPS={steps}", (True, "Every run is cut short. Unset it."))


def _data(machine: Machine) -> Iterator[Finding]:
    prepare = "" if "cifar10" in machine.prepared else "; the benchmarks' is `launch prepare cifar10`"
    yield _found("data sets", f"{', '.join(machine.prepared)}{prepare}")
    for name, free in (("data folder", machine.data_free), ("this folder", machine.runs_free)):
        if free is not None:
            yield _found(name, f"{free / _GIB:,.1f} GiB free", (free < _ROOM, "Free some space before a long run."))


def _version(text: str | None) -> tuple[int, int]:
    """Major and minor of a version; (0, 0) of none."""
    parts = (text or "0.0").split("+", 1)[0].split(".")
    return int(parts[0]), int(parts[1]) if len(parts) > 1 and parts[1].isdecimal() else 0
