"""`launch slurm PRESET`: a run as a job of Slurm's, with a Ray cluster of its own that lasts as long as the job."""
