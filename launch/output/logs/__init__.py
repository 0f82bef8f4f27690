"""What a run writes down of itself while it goes on: which figures, and where they are kept."""
