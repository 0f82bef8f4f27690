"""One locally trained layer, and what is counted of it."""
