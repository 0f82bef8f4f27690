"""`launch bench`: the pipeline beside what people use today, on the same devices, in turns."""
