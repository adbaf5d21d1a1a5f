"""The one error that a user can mend."""


class InputError(ValueError):
    """A call, a configuration or data that cannot be used.

    Entry points print it as one line, ``error: <what> — <what to do>``, and exit with code 2.

    Args:
        what: What is wrong, with the value received.
        remedy: What to do about it, in the imperative.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what} — {remedy}")
        self.what, self.remedy = what, remedy

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str]]:
        """Crosses a process boundary whole: the default would call ``__init__`` with the joined message."""
        return type(self), (self.what, self.remedy)
