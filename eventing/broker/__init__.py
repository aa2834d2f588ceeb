"""Our own broker: the Knative data-plane contract on Redis Streams.

`ingress` takes events, `trigger` says who wants them, `queue` keeps them in order of lane and fair
share, `pump` delivers them as `delivery` decides. Any number of brokers and pumps work on the same
Redis; none leads. In the *serverless* topology a Knative Broker stands in this place, and nothing
else changes.
"""
