"""Mistakes of a user in a run of many ranks."""

from alliance.errors import InputError


class AgreedError(InputError):
    """A user's mistake that every rank raises; one of them says it."""
