"""The HTTP API: jobs, OpenAI's endpoints, live tokens, and CloudEvents.

Imports `eventing` only. Must not know vLLM, KServe or Kubernetes: `import api.app` works in an interpreter without
them.
"""
