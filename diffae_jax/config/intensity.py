"""The range of values that becomes [-1, 1], as the key data.intensity writes it."""

import math
import re

from diffae_jax.runtime.errors import UserError, shown

INTENSITY = re.compile(r"([^%]+?)(%?)\.\.([^%]+?)(%?)")  # LOW..HIGH, or LOW%..HIGH%


def parse_intensity(text: str) -> tuple[float, float, bool] | None:
    """Reads data.intensity: "LOW..HIGH", or "LOW%..HIGH%" for percentiles, which the flag tells; None where empty.

    Raises UserError for anything else, and unless LOW is less than HIGH.
    """
    if not text:
        return None
    found = INTENSITY.fullmatch(text)
    try:
        low, high = (float(found[1]), float(found[3])) if found else (math.nan, math.nan)
    except ValueError:
        low = high = math.nan
    percent = bool(found and found[2])
    if not (found and found[2] == found[4] and math.isfinite(low + high) and low < high):
        raise UserError(
            f"data.intensity is LOW..HIGH, such as 0..4095, or percentiles, such as 0.5%..99.5%, not {shown(text)}."
        )
    if percent and not (low >= 0 and high <= 100):
        raise UserError(f"The percentiles of data.intensity lie between 0 and 100, not at {shown(text)}.")
    return low, high, percent


def format_intensity(intensity: tuple[float, float] | None) -> str:
    """The inverse of `parse_intensity` for two values."""
    return "" if intensity is None else f"{intensity[0]!r}..{intensity[1]!r}"
