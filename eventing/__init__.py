"""The contract of Torpor: events, jobs, their store, and the broker that carries them.

Everything the api and the predictor must agree on lives here. This package imports nothing else of
ours and must not know FastAPI routes, vLLM or Kubernetes.
"""
