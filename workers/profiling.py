"""Times a run's layers on a cluster's devices."""

from __future__ import annotations

import time
from dataclasses import replace

import ray
import torch
from ray.exceptions import GetTimeoutError, RayError

from pipeline.config.devices import Devices
from pipeline.config.run_spec import RunSpec
from pipeline.errors import ResourcesError, RunError
from pipeline.planning.costs import Profile, Sample
from pipeline.planning.profile import joined, profile, time_feed
from workers.failures import own_error

_TIMING = 300.0  # seconds that a cluster's devices may take to time the layers


def profile_cluster(spec: RunSpec, devices: Devices) -> Profile:
    """Times the layers on as many of the cluster's devices at once as stages could use."""
    begun = time.perf_counter()
    pipe = spec.settings.pipeline
    gpus, cores = (1.0, 0.0) if devices.kind == "cuda" else (0.0, float(pipe.threads))
    # A process that has timed once ends: it would keep its GPU's memory.
    task = ray.remote(max_calls=1, num_gpus=gpus, num_cpus=cores)(_profile_device)
    running = [task.remote(spec) for _ in range(min(devices.count, spec.num_layers))]
    try:
        samples: list[Sample] = ray.get(running, timeout=pipe.resource_timeout + _TIMING)
    except GetTimeoutError as error:
        for one in running:
            ray.cancel(one, force=True)
        raise ResourcesError(
            f"the cluster's devices did not time the layers within {pipe.resource_timeout + _TIMING:g} s. Free some, "
            "or give the layers of each stage, such as `partition` 2 2."
        ) from error
    except RayError as error:
        raise own_error(error) or RunError(
            f"timing the layers on the cluster failed: {str(error).splitlines()[-1]}"
        ) from error
    return replace(joined(samples, spec), feed_seconds=time_feed(spec), took=time.perf_counter() - begun)


def _profile_device(spec: RunSpec) -> Sample:
    """Times the layers on the device that Ray gives this task."""
    return profile(spec, torch.device(spec.device))
