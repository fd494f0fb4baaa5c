"""What operators call devices by, beside their names, and which of them a run is for."""

import re
from collections.abc import Mapping

LABEL = re.compile(r"[A-Za-z0-9._-]{1,63}")
"""A key, or a value."""
MOST_LABELS = 32
"""Of one device, or of one run."""


def wrong(labels: Mapping[str, str]) -> str:
    """Return what is wrong with labels, for people; empty if nothing is."""
    for key, value in labels.items():
        if not LABEL.fullmatch(key) or not LABEL.fullmatch(value):
            return f"label {key!r} = {value!r}; use 1 to 63 characters of A-Z a-z 0-9 . _ - each"
    return ""


def why_not(wanted: Mapping[str, str], given: Mapping[str, str]) -> str:
    """Return why a device with the labels `given` takes no part in a run that wants some; empty if it may."""
    missing = " ".join(f"{key}={value}" for key, value in wanted.items() if given.get(key) != value)
    return f"it is not labelled {missing}, which rounds.labels asks for" if missing else ""
