"""How measured differences are stated on a page, and held to it."""

from __future__ import annotations

import math

LARGEST = 1e-4
"""What no difference may exceed."""

_SLACK = 30.0
"""A page that states more than so many times what is measured is out of date."""


def bound(value: float) -> str:
    """`value` with half as much again, rounded up to 1, 2 or 5 in its decade: on another processor
    sums may be taken in another order."""
    if value == 0:
        return "0"
    wanted = 1.5 * value
    decade = 10.0 ** math.floor(math.log10(wanted))
    limit = next(step for step in (1, 2, 5, 10) if step * decade >= wanted) * decade
    if value <= LARGEST < limit:
        limit = LARGEST
    return f"≤ {limit:.0e}".replace("e-0", "e-")


def within(value: float, said: str) -> bool:
    """Whether `value` is as stated: exactly 0, or at most the bound and not far below it."""
    if said == "0" or value == 0:
        return said == "0" and value == 0
    if not said.startswith("≤ "):
        return False
    limit = float(said.removeprefix("≤ "))
    return limit / _SLACK <= value <= limit <= LARGEST
