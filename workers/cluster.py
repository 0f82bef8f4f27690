"""Joining a Ray cluster, or starting a private one for the length of a run."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import ray

from pipeline.allocator import ENVIRONMENT
from pipeline.errors import ResourcesError
from pipeline.resolve import Devices, local_devices, num_cores, num_stages
from pipeline.settings import PipelineSettings, Settings

_CONNECT_TIMEOUT = 5.0
_OBJECT_STORE = 256 << 20  # bytes; only set-up, metrics and weights pass through it
_DEFAULT_PORT = 6379


@contextmanager
def ray_cluster(settings: Settings) -> Iterator[Devices]:
    """Ray for a run; gives the devices that stages can be placed on. A private cluster ends with the block.

    Raises:
        ResourcesError: the cluster cannot be reached, or has no GPU where CUDA is asked for.
    """
    pipe = settings.pipeline
    if pipe.ray_address is not None:
        _reach(pipe.ray_address)
    if ray.is_initialized():  # a notebook or a test that keeps its own cluster
        yield _cluster_devices(pipe)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a training run calls nobody
    address = pipe.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        for name, value in ENVIRONMENT.items():  # the workers inherit it
            os.environ.setdefault(name, value)
        # By default Ray's workers yield to every other process (niceness 15). Here they are what the machine is for.
        os.environ.setdefault("RAY_worker_niceness", "0")
        devices = local_devices(pipe.device, pipe.threads)
        # More stages than cores take turns; Ray must not refuse them on a machine that is theirs alone.
        cores = max(num_cores(), num_stages(settings, devices.count) * pipe.threads)
        ray.init(
            address="local",
            num_cpus=cores,
            object_store_memory=_OBJECT_STORE,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    else:
        _reach(address)
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            if os.environ.get("RAY_AUTH_MODE") is None:
                reason += " (one that asks for a token, as Ray's do by default, needs RAY_AUTH_MODE=token here)"
            raise ResourcesError(_unreachable(address, reason)) from error
        devices = _cluster_devices(pipe)
    try:
        yield devices
    finally:
        ray.shutdown()


def _cluster_devices(settings: PipelineSettings) -> Devices:
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0))
    if settings.device == "cuda" and not gpus:
        raise ResourcesError("--device cuda: the Ray cluster has no GPU. Use --device cpu, or add a GPU node.")
    if settings.device == "cuda" or (settings.device == "auto" and gpus):
        return Devices("cuda", gpus)
    return Devices("cpu", max(1, int(there.get("CPU", 1)) // settings.threads))


def _reach(address: str) -> None:
    """Knocks at the address first: Ray itself would try for a minute."""
    if address in ("auto", "local"):
        return
    target = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = target.hostname, target.port or (10001 if target.scheme == "ray" else _DEFAULT_PORT)
        socket.create_connection((host or "", port), timeout=_CONNECT_TIMEOUT).close()
    except (OSError, ValueError) as error:
        raise ResourcesError(_unreachable(address, str(error))) from error


def _unreachable(address: str, reason: str) -> str:
    return (
        f"The Ray cluster at {address} cannot be reached: {reason}. Start one with `ray start --head`, correct "
        "--ray-address or RAY_ADDRESS, or leave both out to run on this machine alone."
    )
