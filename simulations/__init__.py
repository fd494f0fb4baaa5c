"""Data sets, partitions, simulated devices, experiments and reports."""
