"""Which GPU each stage gets: what nvidia-smi's table says, the order made of it, and stages in Ray that keep to it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import combinations, pairwise, permutations
from pathlib import Path

import pytest

from workers.topology import Place, ask_nvidia_smi, gpu_chain, links_in, stage_order

LEGEND = """
Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NODE = Connection traversing PCIe as well as the interconnect between PCIe Host Bridges within a NUMA node
  PHB  = Connection traversing PCIe as well as a PCIe Host Bridge (typically the CPU)
  PXB  = Connection traversing multiple PCIe bridges (without traversing the PCIe Host Bridge)
  PIX  = Connection traversing at most a single PCIe bridge
  NV#  = Connection traversing a bonded set of # NVLinks

NIC Legend:

  NIC0: mlx5_0
  NIC1: mlx5_1
"""


def table(rows: str, after: str = "\t0-63\t0\t\tN/A") -> str:
    """The table of GPUs whose rows these are, as nvidia-smi writes it."""
    cells = [row.split() for row in rows.strip().splitlines()]
    names = [f"GPU{number}" for number in range(len(cells))]
    lines = ["\t" + "\t".join(names) + "\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID"]
    lines += [
        name + "\t" + "\t".join(f" {cell} " for cell in row) + after for name, row in zip(names, cells, strict=True)
    ]
    return "\n".join(lines) + "\n" + LEGEND


# As a driver of 2023 writes it: the head underlined, network cards among the columns and rows.
A100S = (
    "\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tGPU4\tGPU5\tGPU6\tGPU7\tNIC0\tNIC1\tCPU Affinity\tNUMA Affinity\x1b[0m\n"
    "GPU0\t X \tNV12\tNV12\tNV12\tNV12\tNV12\tNV12\tNV12\tPXB\tSYS\t48-63,176-191\t3\n"
    "GPU1\tNV12\t X \tNV12\tNV12\tNV12\tNV12\tNV12\tNV12\tPXB\tSYS\t48-63,176-191\t3\n"
    "GPU2\tNV12\tNV12\t X \tNV12\tNV12\tNV12\tNV12\tNV12\tSYS\tSYS\t16-31,144-159\t1\n"
    "GPU3\tNV12\tNV12\tNV12\t X \tNV12\tNV12\tNV12\tNV12\tSYS\tSYS\t16-31,144-159\t1\n"
    "GPU4\tNV12\tNV12\tNV12\tNV12\t X \tNV12\tNV12\tNV12\tSYS\tPXB\t112-127,240-255\t7\n"
    "GPU5\tNV12\tNV12\tNV12\tNV12\tNV12\t X \tNV12\tNV12\tSYS\tPXB\t112-127,240-255\t7\n"
    "GPU6\tNV12\tNV12\tNV12\tNV12\tNV12\tNV12\t X \tNV12\tSYS\tSYS\t80-95,208-223\t5\n"
    "GPU7\tNV12\tNV12\tNV12\tNV12\tNV12\tNV12\tNV12\t X \tSYS\tSYS\t80-95,208-223\t5\n"
    "NIC0\tPXB\tPXB\tSYS\tSYS\tSYS\tSYS\tSYS\tSYS\t X \tSYS\n"
    "NIC1\tSYS\tSYS\tSYS\tSYS\tPXB\tPXB\tSYS\tSYS\tSYS\t X \n"
) + LEGEND

PAIRS = table(
    """
    X    SYS  NV4  SYS
    SYS  X    SYS  NV4
    NV4  SYS  X    SYS
    SYS  NV4  SYS  X
    """
)

# Two sockets; on each a switch with two GPUs, and a GPU at another host bridge. Numbered across one another.
PCIE = table(
    """
    X     SYS   PIX   SYS   NODE  SYS
    SYS   X     SYS   PXB   SYS   PHB
    PIX   SYS   X     SYS   NODE  SYS
    SYS   PXB   SYS   X     SYS   PHB
    NODE  SYS   NODE  SYS   X     SYS
    SYS   PHB   SYS   PHB   SYS   X
    """
)

# A DGX-1 with V100s: each is joined to four others, by one link or two.
CUBE_MESH = table(
    """
    X    NV1  NV1  NV2  NV2  SYS  SYS  SYS
    NV1  X    NV2  NV1  SYS  NV2  SYS  SYS
    NV1  NV2  X    NV2  SYS  SYS  NV1  SYS
    NV2  NV1  NV2  X    SYS  SYS  SYS  NV1
    NV2  SYS  SYS  SYS  X    NV1  NV1  NV2
    SYS  NV2  SYS  SYS  NV1  X    NV2  NV1
    SYS  SYS  NV1  SYS  NV1  NV2  X    NV2
    SYS  SYS  SYS  NV1  NV2  NV1  NV2  X
    """
)

NOT_UNDERSTOOD = {
    "no nvidia-smi": "",
    "no GPU": "No devices were found\n",
    "no driver": "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n",
    "one GPU": table("X"),
    "a word of tomorrow": PAIRS.replace("NV4", "QX1"),
    "a row that is cut short": PAIRS.replace("GPU3\t SYS \t NV4 \t SYS \t X \t0-63\t0\t\tN/A", "GPU3\t SYS"),
    "a row missing": PAIRS.replace("GPU3\t SYS ", "GPU9\t SYS "),
    "a head alone": PAIRS.splitlines()[0],
    "garbage": "\x1b[4m GPU GPU0\nGPU0\n\x00\xff GPU1 X X\n",
}


def ids(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def test_nvlinks_are_stronger_than_switches_then_bridges_then_sockets() -> None:
    words = ["SYS", "NODE", "PHB", "PXB", "PIX", "NV1", "NV12"]
    strengths = [links_in(table(f"X {word}\n{word} X"))["0", "1"] for word in words]
    assert strengths == sorted(set(strengths))


@pytest.mark.parametrize(
    ("told", "count", "order"),
    [
        (A100S, 8, "0 1 2 3 4 5 6 7"),  # all the same: by their ids
        (PAIRS, 4, "0 2 1 3"),  # each pair together, and one link across
        (PCIE, 6, "0 2 4 1 3 5"),  # one link across sockets; the switches' GPUs together
        (CUBE_MESH, 8, "0 3 2 1 5 6 7 4"),  # double links all the way
    ],
    ids=["NVSwitch", "two pairs", "PCIe alone", "cube mesh"],
)
def test_neighbouring_stages_get_the_strongest_links(told: str, count: int, order: str) -> None:
    assert gpu_chain(ids(count), links_in(told)) == order.split()


@pytest.mark.parametrize("told", [PAIRS, PCIE, CUBE_MESH], ids=["two pairs", "PCIe alone", "cube mesh"])
def test_no_order_of_a_run_s_gpus_is_better(told: str) -> None:
    """Whichever of a node's GPUs a run gets: an exhaustive search finds no chain with stronger links."""
    links = links_in(told)

    def strengths(chain: Sequence[str]) -> list[int]:
        return sorted(links[pair] for pair in pairwise(chain))

    there = sorted({gpu for gpu, _ in links})
    for size in (2, 3, 4):
        for some in combinations(there, size):
            assert strengths(gpu_chain(some, links)) == max(strengths(chain) for chain in permutations(some)), some


@pytest.mark.parametrize("told", NOT_UNDERSTOOD.values(), ids=NOT_UNDERSTOOD)
def test_what_is_not_understood_leaves_the_order_of_ids(told: str) -> None:
    links = links_in(told)
    assert links == {}
    assert gpu_chain(["10", "2", "0", "1"], links) == ["0", "1", "2", "10"]


def test_gpus_that_the_table_does_not_know_go_by_their_ids() -> None:
    """CUDA_VISIBLE_DEVICES may name GPUs by their UUIDs, of which the table knows nothing."""
    assert gpu_chain(["GPU-b1", "GPU-a2"], links_in(PAIRS)) == ["GPU-a2", "GPU-b1"]
    assert gpu_chain(["3", "7", "1"], links_in(PAIRS)) == ["1", "3", "7"]


def test_stages_go_node_by_node_and_there_gpu_by_gpu() -> None:
    places = [Place(node, gpu) for gpu in "2031" for node in ("z", "here", "a")]
    order = [places[index] for index in stage_order(places, ["here", "b", "a", "z"], {"z": links_in(PAIRS)})]
    assert order == [
        *(Place("here", gpu) for gpu in "0123"),
        *(Place("a", gpu) for gpu in "0123"),
        *(Place("z", gpu) for gpu in "0213"),
    ]


def test_stages_that_share_a_gpu_are_neighbours() -> None:
    places = [Place("a", gpu) for gpu in ("1", "0", "1", "0", "1")]
    assert stage_order(places, ["a"], {}) == [1, 3, 0, 2, 4]


def test_a_node_without_nvidia_smi_has_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_nvidia_smi() == ""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho half a table\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert ask_nvidia_smi() == "", "it failed"


PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path
import ray
import workers.cluster
import workers.crew
import workers.group
from pipeline.config.devices import Devices
from tests.support import changed, tiny_spec

class Reporting:
    def __init__(self, spec, name):
        pass
    def gpus(self):
        return ray.get_gpu_ids()

workers.cluster.local_devices = lambda *asked: Devices("cuda", 4)
workers.crew.StageWorker = Reporting  # no stage of ours starts without a real GPU
workers.group.RayWorkers._begin_all = workers.group.RayWorkers._connect = lambda self: None
spec = changed(tiny_spec(stages=3), "pipeline", executor="ray", device="cuda", transport="gloo")
spec = replace(spec, device="cuda", stages=(range(1), range(1, 2), range(2, 3), range(3, 4)))
with workers.cluster.ray_cluster(spec.settings) as devices:
    print(devices.count, int(ray.cluster_resources()["GPU"]))
    for _ in range(2):
        with workers.group.RayWorkers(spec) as group:
            print(*(gpu for stage in group._crew.stages.values() for gpu in ray.get(stage.gpus.remote())))
        Path(sys.argv[1]).unlink(missing_ok=True)
"""


@pytest.mark.slow
@pytest.mark.exhaustive
def test_stages_in_ray_are_in_the_order_of_their_gpus(tmp_path: Path) -> None:
    """Four GPUs that are there for Ray alone: in two pairs by a table of nvidia-smi's, and then without it."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\ncat <<'END'\n{PAIRS}\nEND\n")
    smi.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(smi)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["4 4", "0 2 1 3", "0 1 2 3", ""]
