"""What `launch doctor --gpu` runs, as data: the steps in order of importance, with their commands and time limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Reader = Literal["tests", "costs", "bench", "plan", "memory", "transport", "learning"]
"""Which of ``launch.doctor.figures`` reads what a step leaves."""


LEAST = 20.0
"""Seconds that a step needs to show anything: it is not begun with less."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command, what reads its output, and what it needs.

    Attributes:
        name: value of --only and name of its files.
        title: for people.
        command: arguments of ``launch``; of Python's pytest where ``reader`` is "tests".
        limit: seconds after which it is stopped. What it has found until then counts.
        reader: what finds its figures. Files of other steps than "tests" go to a folder of the step's name.
        gpus: how many it needs.
        images: it reads CIFAR-10, which has to be the real one.
    """

    name: str
    title: str
    command: tuple[str, ...]
    limit: float
    reader: Reader
    gpus: int = 0
    images: bool = False

    def shown(self) -> str:
        """The command as a person types it."""
        program = "python -m pytest" if self.reader == "tests" else "launch"
        return " ".join([program, *self.command])


def steps_for(device: str, num_gpus: int, data: str) -> tuple[Step, ...]:
    """The steps for this many GPUs, or with ``device`` cpu in small sizes for CPUs.

    Args:
        data: what benchmarks read on GPUs: "cifar10", or a folder of made-up images of its size.
    """
    return _on_gpus(num_gpus, data) if device == "cuda" else _on_cpu()


def _on_gpus(num_gpus: int, data: str) -> tuple[Step, ...]:
    cuda = ("--device", "cuda")
    shared = ("--devices", "2") if num_gpus < 2 else ()  # one GPU: two stages share it
    contest = (*shared, *cuda, "--data", data, "--rounds", "3", "--source", "memory")
    vit = (*contest, "--dim", "128", "--heads", "4", "--depth", "5")
    short = ("--only", "backprop", "ddp", "gpipe-8", "1f1b-8", "cff-serial-1", "cff-1", "dcl")
    vit_cifar10, vgg = "cff-vit-cifar10", "dcl-vgg8b"
    return (
        _tests(420),
        _costs("costs-vit-128", "vit-128", 420, *cuda, "--backprop"),
        _bench("bench-paper", "The paper's experiment: ViT[128 4 2] against backprop and DataParallel", 150, "paper",
               *shared, *cuda, "--data", data, "--rounds", "3", "--source", "memory"),
        _bench("bench-fp32", "All rows, ViT[128 4 5], fp32", 240, *vit),
        _bench("bench-bf16", "All rows, ViT[128 4 5], bf16", 240, *vit, "--precision", "bf16"),
        _memory(150, "--data", data, *cuda),
        _transport(60),
        _learning("learn-cff", "CFF, ViT[128 4 5], CIFAR-10", 200, vit_cifar10, *cuda, "--precision", "bf16"),
        _learning("learn-cff-bp", "The same net by backprop", 100, vit_cifar10, *cuda, "--precision", "bf16",
                  "--baseline", "bp"),
        _learning("learn-dcl", "DCL, VGG8b, CIFAR-10", 200, vgg, *cuda, "--precision", "bf16"),
        _learning("learn-dcl-bp", "The same net by backprop", 100, vgg, *cuda, "--precision", "bf16",
                  "--baseline", "bp"),
        _bench("bench-tf32", "Rows that matter, ViT[128 4 5], tf32", 150, *vit, *short, "--precision", "tf32"),
        _bench("bench-compiled", "Rows that matter, ViT[128 4 5], bf16, compiled", 200, *vit, *short, "--precision",
               "bf16", "--compile", "on"),
        _bench("bench-no-graphs", "Rows of ours, ViT[128 4 5], bf16, without CUDA graphs", 200, *vit, "--only",
               "cff-serial-1", "cff-1", "dcl", "--precision", "bf16", "--graphs", "off"),
        _costs("costs-vit-240", "vit-240", 240, *cuda),
        _costs("costs-vit-b-224", "vit-b-224", 240, *cuda),
        _costs("costs-resnet32", "resnet32", 150, *cuda),
        _costs("costs-vgg8b", "vgg8b", 150, *cuda),
        _bench("bench-240", "Rows that matter, ViT[240 6 7], bf16", 200, *contest, *short, "--dim", "240",
               "--heads", "6", "--depth", "7", "--precision", "bf16"),
        _plan(200, "cff-vit-cifar10", "--data", data, *cuda, "--measure", gpus=2),
    )  # fmt: skip


def _on_cpu() -> tuple[Step, ...]:
    """The same kinds of steps, each small enough for two cores: they show that the report works."""
    cpu = ("--device", "cpu")
    digits = ("--data", "digits", "--batch-size", "64", "--rounds", "1", "--steps", "2", "--warm", "1")
    tiny = (*digits, "--dim", "16", "--heads", "2", "--depth", "2", *cpu, "--source", "memory")
    ours = ("--only", "backprop", "cff-serial-1", "cff-1")
    few = ("--batch-size", "16", "--steps", "2", "--precision", "fp32", "--compile", "off", *cpu)
    return (
        _tests(240),
        _costs("costs-vit-128", "vit-128", 240, *few, "--backprop"),
        _bench("bench-paper", "The paper's experiment, tiny", 240, "paper", *ours, *tiny),
        _bench("bench-fp32", "Rows that matter, tiny, fp32", 240, *tiny, *ours),
        _bench("bench-bf16", "Rows that matter, tiny, bf16", 240, *tiny, *ours, "--precision", "bf16"),
        _memory(240, *digits[:4], "--dim", "16", "--heads", "2", *cpu, "--depths", "2", "4"),
        _transport(240, "--sizes", "0", "2", "--rounds", "1", "--seconds", "0.1"),
        _learning("learn-cff", "CFF, ViT[64 4 4], digits", 60, "cff-vit", *cpu, "--executor", "serial"),
        _learning("learn-cff-bp", "The same net by backprop", 30, "cff-vit", *cpu, "--baseline", "bp"),
        _costs("costs-resnet32", "resnet32", 240, *few),
        _costs("costs-vgg8b", "vgg8b", 240, *few),
        _plan(240, "cff-vit", "--dim", "16", "--heads", "2", "--depth", "2", *cpu),
    )  # fmt: skip


def _tests(limit: float) -> Step:
    arguments = ("tests/test_gpu.py", "-v", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist")
    title = "GPU tests: the same bits from every executor on CUDA"
    return Step(name="gpu-tests", title=title, command=arguments, limit=limit, reader="tests")


def _costs(name: str, net: str, limit: float, *arguments: str) -> Step:
    command = ("doctor", "costs", net, *arguments, "--out", name)
    return Step(name=name, title=f"One training step of {net}: time, kernels, memory", command=command, limit=limit,
                reader="costs")  # fmt: skip


def _bench(name: str, title: str, limit: float, *arguments: str) -> Step:
    return Step(name=name, title=title, command=("bench", *arguments, "--out", name), limit=limit, reader="bench")


def _memory(limit: float, *arguments: str) -> Step:
    command = ("bench", "memory", *arguments, "--out", "memory")
    return Step(name="memory", title="Peak memory by depth", command=command, limit=limit, reader="memory")


def _transport(limit: float, *arguments: str) -> Step:
    command = ("bench", "transport", *arguments, "--out", "transport")
    return Step(name="transport", title="A message between two stages", command=command, limit=limit,
                reader="transport")  # fmt: skip


def _learning(name: str, what: str, seconds: int, preset: str, *arguments: str) -> Step:
    command = ("doctor", "learning", preset, *arguments, "--seconds", str(seconds), "--out", name)
    real = preset != "cff-vit"
    return Step(name=name, title=f"Seconds to an accuracy: {what}", command=command, limit=seconds + 90.0,
                reader="learning", images=real)  # fmt: skip


def _plan(limit: float, *arguments: str, gpus: int = 0) -> Step:
    command = ("plan", *arguments, "--out", "plan")
    title = "Each layer's time, and the pipeline predicted" + (" and measured" if gpus else "")
    return Step(name="plan", title=title, command=command, limit=limit, reader="plan", gpus=gpus)


def why_not(step: Step, *, num_gpus: int, prepared: Sequence[str], has_tests: bool) -> str | None:
    """Why a step cannot run here; None where it can."""
    if step.gpus > num_gpus:
        return f"needs {step.gpus} GPUs, and there {'is' if num_gpus == 1 else 'are'} {num_gpus or 'none'}"
    if step.images and "cifar10" not in prepared:
        return "CIFAR-10 is not prepared: `launch prepare cifar10`"
    if step.reader == "tests" and not has_tests:
        return "the tests, or pytest, are not there: an installed package has none. `make gpu` in a clone has them"
    return None


def allowance(step: Step, left: float) -> float | None:
    """Seconds that a step may take of those that are left; None where they are too few to begin it."""
    return min(step.limit, left) if left >= LEAST else None
