"""The embedded broker: the Knative data-plane contract on Redis Streams.

`ingress` accepts events, `trigger` selects the subscribers, `queue` orders events by lane and fair share, `pump`
delivers them as `delivery` decides. Any number of brokers and pumps share one Redis; there is no leader. In the
*serverless* topology a Knative Broker replaces this package, and nothing else changes.
"""
