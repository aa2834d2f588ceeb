"""Manifests of the broker: Knative's, or ours."""
