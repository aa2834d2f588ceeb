"""The steps of a job before its predictor and after it: one process, one route a step (docs/pipelines.md)."""
