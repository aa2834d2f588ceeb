"""Scaling policies as pure functions of the clock, without I/O, so that simulation and production agree.

The KPA in an autoscaler loop (every `kpa.TICK_S`, at zero also on the first request):

    from knative.autoscaling import kpa, reconciler
    from knative.autoscaling.kpa.annotations import read_knative

    scaling = read_knative(manifest)                     # Knative Service or InferenceService
    state = kpa.start(scaling.spec, ready_pods=0, now=now)
    revision = reconciler.start(scaling.policy, now=now)
    ...
    state = kpa.record(state, now, in_flight)            # once a second, zeros too
    state, decision = kpa.decide(state, ready_pods, now)
    revision, outcome = reconciler.reconcile(
        scaling.policy, revision, decision, reconciler.Pods(replicas, ready_pods), now
    )
    # start or drain replicas until there are outcome.replicas

KEDA: `keda.poll` decides 0 <-> 1 every polling interval, `hpa.decide` the rest every 15 s;
`scaledobject.read_scaled_object` gives both their settings.
"""
