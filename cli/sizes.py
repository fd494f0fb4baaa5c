"""Sizes in bytes as people write them."""

import re

import typer

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_bytes(text: str) -> int:
    """Return the bytes in 500000, 1.5MB or 768MiB. Raises `typer.BadParameter`."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmg]i?)?b?\s*", text.lower())
    if not found:
        raise typer.BadParameter(f"{text!r} is not a size; write 500000, 1.5MB or 768MiB")
    return int(float(found[1]) * UNITS[found[2] or ""])
