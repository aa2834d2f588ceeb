"""Judging a request before the predictor is asked: the step `moderate-input`."""
