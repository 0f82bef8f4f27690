"""Training: the serial loop, and the same in stages that pass messages on."""
