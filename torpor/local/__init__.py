"""The local stack: the queue topology on one machine, for development.

`torpor up` runs it. Store, broker, api and predictors are processes of their own, as in a cluster; activator,
autoscaler and replicas, which Knative Serving provides there, are small implementations with the same policies. For
more than one machine use Knative, KEDA and a real Redis.
"""
