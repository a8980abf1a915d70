"""The one exception that is shown to a user as a single line."""

from alliance.passwords import hide_passwords


class InputError(ValueError):
    """A user's input does not fit. The message says what is wrong, the value seen and the mend; it holds no password."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(hide_passwords(each) if isinstance(each, str) else each for each in arguments))
