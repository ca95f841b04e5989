"""Hyperparameters are refused, never repaired: one check for all transforms and schedules."""

from __future__ import annotations

import math

from bigopt.core.errors import ConfError


def check_range(
    where: str, value: object, low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = True
) -> None:
    """Refuse a number outside an interval.

    Parameters
    ----------
    where : str
        Conf path of the key, for example ``optimizer.momentum``.
    value : object
        What was given; only finite real numbers pass, so infinity and NaN never do.
    low, high : float
        Ends of the interval.
    open_low, open_high : bool
        Whether an end itself is outside.

    Raises
    ------
    ConfError
        With the interval in the message.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfError(f"{value!r} is not a number", where=where)
    above = value > low if open_low else value >= low
    below = value < high if open_high else value <= high
    if not (above and below and math.isfinite(value)):
        interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        raise ConfError(f"{value:g} is not in {interval}", where=where)


def check_rate(value: object) -> None:
    """Refuse a learning rate that is not a positive number."""
    check_range("schedule.learning_rate", value, 0.0, open_low=True)
