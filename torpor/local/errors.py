"""What can go wrong with the stack on one machine, in words for the person at the terminal."""


class StackError(Exception):
    """A part of the stack cannot be had. The message says which, why, and what to do."""
