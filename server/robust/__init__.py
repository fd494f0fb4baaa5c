"""Folding updates of devices some of which are broken or mean harm."""
