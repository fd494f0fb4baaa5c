"""A small experiment whose keys are searched."""

TEXT = """
name = "small"
seed = 5
[data]
proxy = 40
[model]
widths = [8, 8]
[rounds]
count = 1
[tiers]
large = { devices = 1, width = 1.0 }
small = { devices = 1, width = 0.5 }
"""
