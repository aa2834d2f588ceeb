"""What a person at the terminal can mend."""


class UserError(Exception):
    """One clear line: what was wrong and what to do."""
