"""Reads and writes the key data.intensity: the range of values that is scaled to [-1, 1]."""

import math
import re

from diffae_jax.runtime.errors import UserError, shown

INTENSITY = re.compile(r"([^%]+?)(%?)\.\.([^%]+?)(%?)")  # LOW..HIGH, or LOW%..HIGH%


def parse_intensity(text: str) -> tuple[float, float, bool] | None:
    """Parses data.intensity: "LOW..HIGH", or "LOW%..HIGH%" for percentiles.

    Returns (low, high, is_percentile), or None if the text is empty. Raises UserError for any
    other text, and if LOW is not less than HIGH.
    """
    if not text:
        return None
    match = INTENSITY.fullmatch(text)
    try:
        low, high = (float(match[1]), float(match[3])) if match else (math.nan, math.nan)
    except ValueError:
        low = high = math.nan
    is_percentile = bool(match and match[2])
    if not (match and match[2] == match[4] and math.isfinite(low + high) and low < high):
        raise UserError(
            f"data.intensity must be LOW..HIGH, such as 0..4095, or percentiles, such as 0.5%..99.5%, "
            f"not {shown(text)}."
        )
    if is_percentile and not (low >= 0 and high <= 100):
        raise UserError(f"The percentiles of data.intensity must lie between 0 and 100, not {shown(text)}.")
    return low, high, is_percentile


def format_intensity(intensity: tuple[float, float] | None) -> str:
    """Formats two values so that `parse_intensity` returns them; None becomes ""."""
    return "" if intensity is None else f"{intensity[0]!r}..{intensity[1]!r}"
