"""Schedules of the learning rate over the rounds of a run, by text.

`constant`; `cosine`: half a cosine, from the full rate to nothing (Loshchilov & Hutter, ICLR 2017, without restarts);
`step:SHARE,...` or `step:SHARE,.../DIVISOR`: divided by 10, or by the divisor, once each of these shares of the rounds
is over; `exponential:END`: by the same factor in every round, to this share of the rate behind the last one.
"""

from math import cos, isfinite, pi

MOST_STEPS = 16
CONSTANT, COSINE, STEP, EXPONENTIAL = "constant", "cosine", "step", "exponential"
FORMS = "constant, cosine, step:0.5,0.75, step:0.5,0.75/10, exponential:0.1"
_TINY = 1e-9
"""A share of the rounds is a quotient, which may be a rounding below what it was meant to be."""


def share_of_rate(schedule: str, progress: float) -> float:
    """Return what the learning rate is multiplied by once a share of the run's rounds is over, `progress` in [0, 1].

    Raises `ValueError` for a text that is no schedule.
    """
    kind, shares, number = _parsed(schedule)
    if kind == COSINE:
        return (1 + cos(pi * progress)) / 2
    if kind == STEP:
        return float(number ** -sum(progress >= share - _TINY for share in shares))
    return float(number**progress)


def check_schedule(schedule: str) -> None:
    """Raise `ValueError`, in one line, for a text that is no schedule."""
    _parsed(schedule)


def _parsed(schedule: str) -> tuple[str, tuple[float, ...], float]:
    """Return a schedule's kind, its shares of the rounds, and its number: the divisor, or what is left at the end."""
    kind, colon, text = schedule.partition(":")
    try:
        if kind in (CONSTANT, COSINE) and not colon:
            return kind, (), 1.0
        if kind == EXPONENTIAL and 0 < (end := float(text)) <= 1:
            return kind, (), end
        if kind == STEP:
            listed, slash, divisor = text.partition("/")
            shares, number = tuple(map(float, listed.split(","))), float(divisor) if slash else 10.0
            ascend = all(a < b for a, b in zip((0.0, *shares), (*shares, 1.0), strict=True))
            if ascend and len(shares) <= MOST_STEPS and number > 1 and isfinite(number):
                return kind, shares, number
    except ValueError:
        pass
    raise ValueError(
        f"schedule: {schedule!r} is none; accepted: {FORMS} (shares of the rounds ascend between 0 and 1, at most "
        f"{MOST_STEPS}; a divisor is above 1; what is left at the end above 0 and at most 1)"
    )
