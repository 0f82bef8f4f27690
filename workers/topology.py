"""Which GPU each stage gets: neighbours in the pipeline are to be neighbours in the machine.

Activations go from every stage to the next one only. So stages take one node after the other, and within a node the
GPUs that have the strongest links between them, as ``nvidia-smi topo -m`` tells of them.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations, takewhile

Links = dict[tuple[str, str], int]
"""How strong the link between two GPUs is, by their ids on their node; the higher, the stronger. Both ways."""

_NAME = re.compile(r"GPU(\d+)")
_NVLINKS = re.compile(r"NV(\d+)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # newer drivers underline the table's head
# From the weakest on: across sockets, across host bridges, over a host bridge, over several PCIe switches, over one.
# After them come NVLinks, by their number.
_PCIE = ("SYS", "NODE", "PHB", "PXB", "PIX")
_PATIENCE = 10.0  # seconds for nvidia-smi, which wakes a driver that sleeps


@dataclass(frozen=True)
class Place:
    """Where a stage can be: a node by Ray's id, and a GPU by its id on that node."""

    node: str
    gpu: str


def stage_order(places: Sequence[Place], nodes: Sequence[str], links: Mapping[str, Links]) -> list[int]:
    """The places, by their indices, in the order in which stages take them: stage 1 the first.

    Args:
        nodes: in the order in which stages take them.
        links: of every node on which they are known.
    """
    order: list[int] = []
    for node in sorted({place.node for place in places}, key=nodes.index):
        gpus = {place.gpu for place in places if place.node == node}
        for gpu in gpu_chain(gpus, links.get(node, {})):
            order += [index for index, place in enumerate(places) if place == Place(node, gpu)]
    return order


def gpu_chain(gpus: Collection[str], links: Links) -> list[str]:
    """A node's GPUs in an order in which neighbours have strong links; by their ids where links are not known.

    A chain goes from each GPU to the one with the strongest link among those that are left. Of the chains from every
    GPU the best is taken: a pipeline is as fast as its slowest edge, so the weakest links are compared first.
    """
    ids = sorted(gpus, key=_id_order)
    if any(pair not in links for pair in permutations(ids, 2)):
        return ids
    chains = [_chain_from(first, ids, links) for first in ids]
    return max(chains, key=lambda chain: sorted(links[pair] for pair in pairwise(chain)))


def _chain_from(first: str, ids: Sequence[str], links: Links) -> list[str]:
    chain, left = [first], [gpu for gpu in ids if gpu != first]
    while left:
        chain.append(max(left, key=lambda gpu: links[chain[-1], gpu]))  # of equals, the lowest id
        left.remove(chain[-1])
    return chain


def _id_order(gpu: str) -> tuple[bool, int, str]:
    """By number; those that CUDA_VISIBLE_DEVICES names by their UUIDs come after, by these."""
    return (False, int(gpu), "") if gpu.isdecimal() else (True, 0, gpu)


def links_in(told: str) -> Links:
    """The links in a table of ``nvidia-smi topo -m``; none where it is not understood."""
    lines = [words for line in _COLOUR.sub("", told).splitlines() if (words := line.split())]
    lines = [words for words in lines if _NAME.fullmatch(words[0])]  # network cards and the legend are left out
    if not lines:
        return {}
    names = list(takewhile(_NAME.fullmatch, lines[0]))
    rows = {words[0]: words[1 : len(names) + 1] for words in lines[1:]}
    links: Links = {}
    for name in names:
        row = rows.get(name, [])
        if len(row) < len(names):
            return {}
        for other, word in zip(names, row, strict=True):
            strength = _strength(word)
            if other == name:
                continue
            if strength is None:
                return {}
            links[name.removeprefix("GPU"), other.removeprefix("GPU")] = strength
    return links


def _strength(word: str) -> int | None:
    """How strong the link of a word in the table is; None for a word that is not known."""
    if nvlinks := _NVLINKS.fullmatch(word):
        return len(_PCIE) + int(nvlinks[1])
    return _PCIE.index(word) if word in _PCIE else None


def ask_nvidia_smi() -> str:
    """This node's table of links; nothing where nvidia-smi is not there or fails."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "topo", "-m"],  # noqa: S607 (wherever the driver has put it)
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""  # the order of ids has to do
    return done.stdout
