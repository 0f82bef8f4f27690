"""Which build of torch make and docker install: `tools/install_torch.sh` with a pip and an nvidia-smi that pretend."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from shutil import which

import pytest

ROOT = Path(__file__).parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CPU_BUILD = ["filelock", "sympy>=1.13.3", 'opt-einsum>=3.3; extra == "opt-einsum"']
CUDA_BUILD = [
    *CPU_BUILD,
    'cuda-bindings<14,>=13; platform_system == "Linux"',
    'triton==3.7; platform_system == "Linux"',
]

_PYTHON = """#!/bin/bash
# Writes down what pip is asked for, a line each; everything else is Python's.
[[ $1 == -m ]] || exec "{python}" "$@"
shift 2
printf '%s|' "$@" >> "{log}"; echo >> "{log}"
case " $* " in
    *" --report "*) [[ -n $PRETEND_REPORT ]] && echo "$PRETEND_REPORT" ;;
    *" --index-url "*) exit "$PRETEND_CPU_INDEX" ;;
esac
"""


class Machine:
    """A folder with constraints.txt that is all of PATH: the shell's tools are real, pip and nvidia-smi are not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log = folder / "pip.log"
        for tool in ("bash", "grep", "tail"):
            (folder / tool).symlink_to(which(tool) or tool)
        self._executable("python", _PYTHON.format(python=sys.executable, log=self._log))
        (folder / "constraints.txt").write_text("# pins\nnumpy==2.4.0\ntorch==2.13.0\ntyro==1.0.0\n")

    def _executable(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def nvidia_smi(self, *, says: str, status: int = 0) -> None:
        self._executable("nvidia-smi", f"#!/bin/sh\necho '{says}'\nexit {status}\n")

    def install(
        self, *torch: str, index: list[str] | None, cpu_index_fails: bool = False, accelerator: str = ""
    ) -> tuple[list[list[str]], str]:
        """What pip installed, and what was said. index: what the build on pip's index requires; None: no index."""
        report = "" if index is None else json.dumps({"install": [{"metadata": {"requires_dist": index}}]})
        environment = {
            "PATH": str(self.folder),
            "PRETEND_REPORT": report,
            "PRETEND_CPU_INDEX": str(int(cpu_index_fails)),
        }
        if accelerator:
            environment["ACCELERATOR"] = accelerator
        done = subprocess.run(
            [ROOT / "tools" / "install_torch.sh", self.folder / "python", "pins.txt", *torch],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        calls = [line.split("|")[:-1] for line in self._log.read_text().splitlines()]
        installs = [call[call.index("install") + 1 :] for call in calls if "--dry-run" not in call]
        return installs, done.stdout


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


PLAIN = ["-c", "pins.txt", "torch==2.13.0"]


def test_without_a_gpu_an_index_with_a_cpu_build_is_taken_as_it_is(machine: Machine) -> None:
    installs, said = machine.install(index=CPU_BUILD)
    assert installs == [PLAIN]
    assert said.startswith("torch: torch==2.13.0 for the CPU, from pip's index\n")


def test_without_a_gpu_a_cuda_build_is_left_for_pytorchs_cpu_index(machine: Machine) -> None:
    installs, said = machine.install(index=CUDA_BUILD)
    assert [install[-3:] for install in installs] == [["--index-url", CPU_INDEX, "torch==2.13.0"], PLAIN]
    assert "--no-deps" in installs[0]
    assert CPU_INDEX in said and "GB" not in said


@pytest.mark.parametrize("says", ["", "No devices found."])
def test_an_nvidia_smi_that_finds_no_gpu_counts_as_none(machine: Machine, says: str) -> None:
    machine.nvidia_smi(says=says, status=9)
    installs, _ = machine.install(index=CPU_BUILD)
    assert installs == [PLAIN]


def test_where_pytorchs_index_cannot_be_reached_the_large_download_is_announced(machine: Machine) -> None:
    installs, said = machine.install(index=CUDA_BUILD, cpu_index_fails=True)
    assert installs[-1] == PLAIN
    assert f"{CPU_INDEX} cannot be reached: from pip's index then, a download of several GB" in said


def test_an_index_that_does_not_answer_is_not_taken_for_one_with_a_cpu_build(machine: Machine) -> None:
    installs, _ = machine.install(index=None)
    assert CPU_INDEX in installs[0]


def test_with_a_gpu_pips_index_decides(machine: Machine) -> None:
    machine.nvidia_smi(says="GPU 0: NVIDIA H100 (UUID: GPU-0)")
    installs, said = machine.install(index=CUDA_BUILD)
    assert installs == [PLAIN]
    assert "for CUDA" in said


@pytest.mark.parametrize(("accelerator", "first"), [("cuda", PLAIN[-1:]), ("cpu", ["--index-url", CPU_INDEX])])
def test_accelerator_decides_in_place_of_nvidia_smi(machine: Machine, accelerator: str, first: list[str]) -> None:
    if accelerator == "cpu":
        machine.nvidia_smi(says="GPU 0: NVIDIA H100 (UUID: GPU-0)")
    installs, _ = machine.install(index=CUDA_BUILD, accelerator=accelerator)
    assert all(word in installs[0] for word in first)
    assert (CPU_INDEX in installs[0]) == (accelerator == "cpu")


def test_torch_is_handed_to_pip_as_given(machine: Machine) -> None:
    installs, said = machine.install("torch==2.9.1+cpu --extra-index-url https://mirror.example/*", index=CUDA_BUILD)
    assert installs == [["-c", "pins.txt", "torch==2.9.1+cpu", "--extra-index-url", "https://mirror.example/*"]]
    assert "as asked" in said


def test_pins_name_the_torch_that_is_installed(machine: Machine) -> None:
    machine.install(index=CPU_BUILD)
    pins = (machine.folder / "pins.txt").read_text().splitlines()
    assert pins == ["# pins", "numpy==2.4.0", "tyro==1.0.0", f"torch=={version('torch')}"]


@pytest.mark.parametrize("torch", ["", "torch==2.9.1+cpu --extra-index-url https://mirror.example/simple"])
def test_make_hands_torch_on_in_one_piece(torch: str) -> None:
    command = ["make", "--dry-run", "--always-make", "install", *([f"TORCH={torch}"] if torch else [])]
    environment = {name: value for name, value in os.environ.items() if name not in ("TORCH", "MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert f"tools/install_torch.sh .venv/bin/python .venv/constraints.txt '{torch}'\n" in done.stdout
