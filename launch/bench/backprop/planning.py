"""Divides backpropagation over devices, or says why that cannot be, before any process starts."""

from __future__ import annotations

from dataclasses import replace

import torch

from launch.bench.backprop.job import Job, Way, count_of
from launch.bench.protocol import CannotRunError
from launch.bench.stages import stages_of_net
from pipeline.config import build
from pipeline.config.partition import partition
from pipeline.config.run_spec import RunSpec


def backprop_spec(spec: RunSpec) -> RunSpec:
    """The same net, data and training by backpropagation: ``--baseline bp`` of a run of local learning."""
    pipe = replace(spec.settings.pipeline, stages=1, partition="even", executor="serial")
    settings = build.expand_baseline(replace(spec.settings, baseline="bp", pipeline=pipe))
    return replace(spec, settings=settings, stages=partition(1, 1))


def plan(spec: RunSpec, way: Way, num_devices: int, microbatches: int = 1) -> Job:
    """Divides a run of local learning, trained by backpropagation instead, over devices.

    Raises:
        CannotRunError: this way cannot train it on these devices.
    """
    batch_size, num_layers = spec.settings.train.batch_size, spec.settings.net.num_layers
    job = Job(
        spec=backprop_spec(spec),
        way=way,
        num_devices=num_devices if way != "backprop" else 1,
        num_ranks=num_devices if way == "ddp" else 1,
        stages=(range(num_layers),),
        microbatches=microbatches,
    )
    if way == "backprop":
        return job
    if way == "dataparallel" and spec.device != "cuda":
        raise CannotRunError("torch.nn.DataParallel works on GPUs only, and this run is on CPUs.")
    if num_devices < 2:
        raise CannotRunError(f"needs 2 devices or more, and there is {count_of(num_devices, 'device')}.")
    if spec.device == "cuda" and num_devices > torch.cuda.device_count():
        raise CannotRunError(
            f"needs a GPU for each of {num_devices} devices, and there are {torch.cuda.device_count()}: NCCL refuses "
            "two processes on one GPU."
        )
    if way in ("ddp", "dataparallel"):
        if batch_size % num_devices:
            raise CannotRunError(
                f"each of {num_devices} devices takes as many images, and --batch-size {batch_size} does not divide "
                f"into {num_devices}. --batch-size {batch_size - batch_size % num_devices or num_devices} would."
            )
        return job
    if batch_size % microbatches:
        raise CannotRunError(
            f"--batch-size {batch_size} does not divide into {microbatches} microbatches. "
            f"--batch-size {batch_size - batch_size % microbatches or microbatches} would."
        )
    stages = _cut(spec, num_layers, num_devices)
    if len(stages) < 2:
        raise CannotRunError("the net has one layer, which cannot be cut into stages.")
    if way == "1f1b" and microbatches < len(stages):
        raise CannotRunError(
            f"1F1B needs as many microbatches as stages, and there are {microbatches} for {len(stages)} stages."
        )
    return replace(job, num_devices=len(stages), num_ranks=len(stages), stages=stages)


def _cut(spec: RunSpec, num_layers: int, num_devices: int) -> tuple[range, ...]:
    """The stages of the local run where they fit the devices, else as even as can be."""
    num_stages = min(num_devices, num_layers)
    stages = stages_of_net(spec)
    if len(stages) == num_stages and stages[-1].stop == num_layers:
        return stages
    return partition(num_layers, num_stages)
