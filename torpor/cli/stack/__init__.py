"""Commands on the stack of this machine: set up, start, look, end."""
