"""The queues of a broker: one a trigger, on Redis."""
