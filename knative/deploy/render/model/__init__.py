"""Manifests of a model: its predictor, the hardware under it, or the provider in its place."""
