"""Serves our own scaling policy to KEDA over gRPC (KEDA's external scaler)."""
