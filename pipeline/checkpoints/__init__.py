"""Checkpoints as files: how they are written beside the training, and read back whole or not at all."""
