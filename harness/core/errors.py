"""The one error that is shown to a person as one line, without a traceback."""


class UserError(ValueError):
    """Bad input: says what is wrong and what would be right."""
