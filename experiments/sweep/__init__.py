"""Sweeps: which values of some keys are tried, what came of each, and the picture of it."""
