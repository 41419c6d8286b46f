"""Errors that the user can fix, and the one line that says how."""


class UserError(Exception):
    """A wrong flag, file or folder; the message is one line that says what to do."""
