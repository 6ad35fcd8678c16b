"""The one error a user of refq meets for bad input."""


class InputError(ValueError):
    """A value, name or file that refq cannot accept; the message says which and what is allowed."""
