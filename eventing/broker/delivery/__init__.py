"""The delivery of a queue's events to its subscriber, and what follows from the answer."""
