"""The one exception that is shown to a user as a single line."""


class InputError(ValueError):
    """A user's input does not fit. The message says what is wrong, the value seen and the mend."""
