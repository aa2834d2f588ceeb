"""Chooses the model that a job under a public name is sent to."""
