"""Errors that end a command with one line and no stack trace."""


class UserError(Exception):
    """Something failed: exit 1. The message says what, and what to do about it."""


class UsageError(UserError):
    """A usage error: exit 2."""
