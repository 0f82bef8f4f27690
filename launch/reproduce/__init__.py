"""`launch reproduce TABLE`: the runs of a paper's table, and their figures beside the paper's."""
