"""Devices as they are in the field, on a virtual clock."""
