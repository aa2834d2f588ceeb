"""The embedded stack: the queue topology on one machine, for development.

`torpor up` runs it. Store, broker, api and predictors are processes of their own, as in a cluster;
what Knative Serving does there (activator, autoscaler, replicas) is done here by small stand-ins
that run the same policies. It is a development stack: beyond one machine the answer is Knative,
KEDA and a real Redis.
"""
