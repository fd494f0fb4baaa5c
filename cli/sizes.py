"""Sizes in bytes, and counts, as people write and read them."""

import re

import typer

from diastole.proto.words import megabytes as megabytes

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_bytes(text: str) -> int:
    """Return the bytes in 500000, 1.5MB or 768MiB. Raises `typer.BadParameter`."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmg]i?)?b?\s*", text.lower())
    if not found:
        raise typer.BadParameter(f"{text!r} is not a size; write 500000, 1.5MB or 768MiB")
    return int(float(found[1]) * UNITS[found[2] or ""])


def thousands(count: float) -> str:
    """Return a count for people: 12.3 k, 4.5 M, 6.7 G."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"
