"""What `launch slurm` takes besides the flags of the run: what the job asks of Slurm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

_Repeated = tyro.conf.UseAppendAction[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class JobArguments:
    """What a job asks of Slurm."""

    preset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET")]
    """Preset to run."""
    nodes: int = 1
    """Machines."""
    gpus_per_node: int = 0
    """GPUs of each, for a stage each unless --stages says otherwise. 0: stages on cores."""
    cpus_per_node: int | None = None
    """Cores of each. Default: what its stages take, and one for each feeder, the coordinator and the launching process.
    Where there are no GPUs and --stages is not given: enough for a stage per layer."""
    time: Annotated[str | None, tyro.conf.arg(metavar="LIMIT")] = None
    """Time limit of a part of the run, as Slurm has it: 24:00:00, 3-12. At its end the run is saved, queued again and
    goes on. Default: the partition's."""
    partition: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Partition, which is a queue of Slurm's. Default: the cluster's."""
    account: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Whom the time is charged to. Default: yours."""
    sbatch: Annotated[_Repeated, tyro.conf.arg(metavar="OPTION")] = ()
    """Any other option of sbatch, without its dashes, as often as needed: --sbatch mem=64G --sbatch constraint=a100."""
    setup: Annotated[_Repeated, tyro.conf.arg(metavar="LINE")] = ()
    """A line of shell that every node runs first, as often as needed: --setup 'module load cuda'."""
    stop_before: int = 120
    """Seconds before the time limit at which the run is told to stop and save. Slurm may do it a minute earlier."""
    join_timeout: int = 300
    """Seconds within which Ray on all nodes must have found together."""
