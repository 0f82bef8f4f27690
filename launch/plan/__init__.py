"""`launch plan`: predicts a pipeline from the times of its layers."""
