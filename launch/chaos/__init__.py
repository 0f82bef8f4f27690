"""`launch chaos`: a run that is disturbed on purpose, and compared with one that is not."""
