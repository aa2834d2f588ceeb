"""Commands on the stack of this machine: install, start, inspect, stop."""
