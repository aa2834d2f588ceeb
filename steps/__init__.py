"""The steps of a job before its predictor: one process, one route a step (docs/pipelines.md)."""
