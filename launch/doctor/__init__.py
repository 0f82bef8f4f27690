"""`launch doctor`: is this machine fit for a run; and with --gpu, everything measured that a report should say."""
