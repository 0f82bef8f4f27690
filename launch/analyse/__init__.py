"""`launch analyse`: figures and pictures of every layer of a finished run."""
