"""The error of a user's making, told in one sentence with the numbers and the remedy."""


class UserError(Exception):
    """Something that the user can put right. The entry points print its sentence, without a traceback, and exit 2."""
