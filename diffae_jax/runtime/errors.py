"""The error for problems that the user can fix."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

LONGEST_MESSAGE = 400
LONGEST_VALUE = 120  # characters of a value in a message


class UserError(ValueError):
    """A problem that the user can fix, such as a missing file or an invalid value.

    The message states what is wrong and how to fix it. The commands print it without a traceback
    and exit with `exit_code`. Programs can catch it as a ValueError.

    Args:
        message: The message. Characters that are not printable are escaped, so it stays on one
            line. If it is longer than 400 characters, its middle is cut out.
    """

    exit_code = 2

    def __init__(self, message: str):
        super().__init__(_shortened(_in_one_line(_shortened(message))))


class ClusterError(UserError):
    """Other processes of a cluster did not start, or ended. The commands exit with code 3."""

    exit_code = 3


class UnavailableError(UserError):
    """A problem that may pass, such as a server that does not answer.

    The same command may succeed later. The commands exit with code 75, which is EX_TEMPFAIL of
    sysexits.h, so that a scheduler can tell it from a mistake.
    """

    exit_code = 75


def shown(value: Any) -> str:
    """Formats an untrusted value for a message: short and on one line.

    If the value is neither text nor a number, only its type is shown, because it may be very
    large.
    """
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length():,} bits"
    if not isinstance(value, str | int | float | None):
        return f"a {type(value).__name__}"
    return _in_one_line(str(value)[:LONGEST_VALUE])


def list_some(names: Iterable[str]) -> str:
    """Lists the first three names in sorted order, and the number of the others."""
    names = sorted(names)
    return ", ".join(map(shown, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def counted(count: int, noun: str, plural: str = "", *, of: int | None = None, verb: str = "") -> str:
    """Formats a number of things for a sentence.

    Args:
        count: The number.
        noun: The name of one of them.
        plural: The name of several; by default, the noun and an s.
        of: The number of all things, as in "1 of 3 images".
        verb: The verb that follows, in singular and plural, such as "is/are".

    Returns:
        Text such as "1 image", "2,000 images" or "1 of 3 images is".
    """
    number = f"{count:,}" if of is None else f"{count:,} of {of:,}"
    one, _, several = verb.partition("/")
    things = noun if (count if of is None else of) == 1 else plural or f"{noun}s"
    return f"{number} {things} {one if count == 1 else several}".rstrip()


def _in_one_line(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _shortened(text: str) -> str:
    """Cuts out the middle of a long message. Its start states the problem, its end the fix."""
    half = LONGEST_MESSAGE // 2 - 3
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:half]} ... {text[-half:]}"


@contextlib.contextmanager
def reader_errors_as_user_errors(name: str | Path, kind: str, fix: str = "Repair or remove it") -> Iterator[None]:
    """Converts any error of a library that reads files into a UserError.

    Args:
        name: The name of the file or image, for the message.
        kind: What it cannot be read as, such as "an image".
        fix: What to do.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # readers raise errors of any type for a damaged file
        raise UserError(f"{name} cannot be read as {kind} ({shown(str(error))}). {fix}.") from error
