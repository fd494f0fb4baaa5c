"""Execution plans: how a device runs the arithmetic of its training, chosen by measurement."""
