"""Images: where they come from, their shards, the batches of a run, and their augmentation."""
