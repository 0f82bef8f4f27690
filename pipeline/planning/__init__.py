"""What a pipeline would do: layers timed, the schedule simulated, the best division found."""
