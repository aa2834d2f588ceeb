"""Errors of the local stack, in words for the person at the terminal."""


class StackError(Exception):
    """A part of the stack cannot run. The message says which, why, and what to do."""
