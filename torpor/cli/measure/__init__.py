"""Commands that measure: a real load, a simulated one, and a live view."""
