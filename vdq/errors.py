"""The one type of error that is the user's and not the program's."""


class UserError(ValueError):
    """What the user asked for cannot be done; the message is one sentence that says what is wrong and what is allowed.

    The command line prints the message alone. Every other exception is an error of the program and keeps its traceback.
    """
