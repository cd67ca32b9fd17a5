"""The error of a user's making, told in one sentence with the numbers and the remedy."""

from collections.abc import Iterable
from typing import Any

LONGEST_MESSAGE = 400
LONGEST_VALUE = 120  # in a message


class UserError(ValueError):
    """Something that the user can put right. The entry points print its sentence, without a traceback, and exit 2.

    A program may catch it as a ValueError. Its sentence is one line that a terminal shows as it is, whatever it was
    put together from; of one that is too long the middle is left out.
    """

    def __init__(self, message: str):
        super().__init__(_shortened(_in_one_line(_shortened(message))))


def shown(value: Any) -> str:
    """What others wrote, as it may stand in a message: short and in one line.

    Of what is neither text nor a number its type alone is told: it may be deep or long without end.
    """
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length():,} bits"
    if not isinstance(value, str | int | float | None):
        return f"a {type(value).__name__}"
    return _in_one_line(str(value)[:LONGEST_VALUE])


def list_some(names: Iterable[str]) -> str:
    """Returns the first three of some names, and how many more there are."""
    names = sorted(names)
    return ", ".join(map(shown, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _in_one_line(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _shortened(text: str) -> str:
    """The beginning says what is wrong and the end what to do."""
    half = LONGEST_MESSAGE // 2 - 3
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:half]} ... {text[-half:]}"
