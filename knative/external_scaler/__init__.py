"""Serves the work-aware policy to KEDA over gRPC: it runs on a scaler that is there already."""
