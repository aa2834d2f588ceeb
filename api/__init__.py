"""The HTTP API of Torpor: jobs, OpenAI's endpoints, live tokens, events in.

Imports `eventing` only. Must not know vLLM, KServe or Kubernetes: `import api.app` works in an
interpreter that has none of them.
"""
