"""Scaling policies, monitoring, and deployment on a cluster."""
