"""Runs on the machines of a cluster.yaml, from a machine that is none of them: a Ray job on the cluster's head."""
