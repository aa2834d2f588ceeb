"""The local stack as cluster manifests: Triggers, a Knative Service, a ScaledObject.

Called by the stack, which gives them to the same parsers that read a user's YAML: the broker's `parse_trigger`,
`knative.autoscaling.read_knative` and `read_scaled_object`. Pure.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from eventing.broker.trigger import PARALLELISM
from eventing.cloudevent.job_event import REQUESTED
from eventing.redis import keys
from torpor.local.settings import StackSettings

STRAYS: Final = "strays"
Manifest = Mapping[str, Any]


def triggers(
    models: Mapping[str, StackSettings], *, activator_url: Callable[[str], str], api_url: str
) -> list[Manifest]:
    """Requests for a model go to its activator, those for an unknown model to the api. Results are not delivered:
    the predictor has ended the job in the store, where the api reads its end.
    """
    unknown = [{"not": {"exact": {"model": model}}} for model in models]
    return [
        *(_requests(settings, name, activator_url(name)) for name, settings in models.items()),
        _trigger(
            STRAYS,
            filters=[{"exact": {"type": REQUESTED}}, *unknown],
            subscriber=api_url,
            delivery=_delivery(retry=200, backoff_s=0.5, timeout_s=10),
            parallelism=4,
        ),
    ]


def _requests(settings: StackSettings, model: str, activator_url: str) -> Manifest:
    longest_s = settings.max_job_seconds + 60
    # At least one retry each 15 s for twice the longest job: a job that runs in another predictor
    # is never given up.
    patient = _delivery(retry=2 * longest_s // 15 + 10, backoff_s=1, timeout_s=longest_s)
    return _trigger(
        requests_queue(model),
        filters=[{"exact": {"type": REQUESTED, "model": model}}],
        subscriber=activator_url,
        delivery=patient,
        parallelism=settings.max_replicas * settings.container_concurrency,
    )


def requests_queue(model: str) -> str:
    """The name of the queue, and of the trigger, of a model's requests."""
    return f"requests-{model}"


def service(settings: StackSettings, model: str) -> Manifest:
    """The Knative Service whose annotations the KPA reads."""
    annotations = {
        "class": "kpa.autoscaling.knative.dev",
        "metric": "concurrency",
        "window": f"{settings.window:g}s",
        "min-scale": str(settings.min_replicas),
        "max-scale": str(settings.max_replicas),
        "initial-scale": str(settings.min_replicas),
        # The local activator never leaves the path: it is the only thing that can buffer.
        "target-burst-capacity": "-1",
    }
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": model},
        "spec": {
            "template": {
                "metadata": {
                    "annotations": {
                        f"autoscaling.knative.dev/{k}": v for k, v in annotations.items()
                    }
                },
                "spec": {"containerConcurrency": settings.container_concurrency},
            }
        },
    }


def config_autoscaler(settings: StackSettings) -> Mapping[str, str]:
    """The cluster-wide settings that a Service cannot have."""
    return {
        "allow-zero-initial-scale": "true",
        "scale-to-zero-grace-period": f"{settings.grace:g}s",
    }


def scaled_object(settings: StackSettings, model: str) -> Manifest:
    """The ScaledObject of the queue topology: lag and pending in one formula (docs/adr/0003)."""
    stream = {"stream": keys.queue(requests_queue(model), "tickets"), "consumerGroup": keys.GROUP}
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": model},
        "spec": {
            "scaleTargetRef": {"name": model},
            "pollingInterval": 2,
            "cooldownPeriod": int(settings.window),
            "minReplicaCount": settings.min_replicas,
            "maxReplicaCount": settings.max_replicas,
            "triggers": [
                {
                    "type": "redis-streams",
                    "name": "lag",
                    "metadata": {
                        **stream,
                        "lagCount": "1",
                        "activationLagCount": "0",
                        "address": "store:6379",
                    },
                },
                {
                    "type": "redis-streams",
                    "name": "pend",
                    "metadata": {**stream, "pendingEntriesCount": "1", "address": "store:6379"},
                },
            ],
            "advanced": {
                "scalingModifiers": {
                    "formula": "(lag > 0 ? lag : 0) + pend",
                    "target": str(settings.container_concurrency),
                    "activationTarget": "0",
                    "metricType": "AverageValue",
                }
            },
        },
    }


def _trigger(
    name: str, *, filters: list[Manifest], subscriber: str, delivery: Manifest, parallelism: int
) -> Manifest:
    return {
        "apiVersion": "eventing.knative.dev/v1",
        "kind": "Trigger",
        "metadata": {"name": name, "annotations": {PARALLELISM: str(parallelism)}},
        "spec": {
            "broker": "torpor",
            "filters": filters,
            "subscriber": {"uri": subscriber},
            "delivery": delivery,
        },
    }


def _delivery(*, retry: int, backoff_s: float, timeout_s: float) -> Manifest:
    """Linear, so that the first retries come soon; the span is delay x n (n-1) / 2."""
    return {
        "retry": retry,
        "backoffPolicy": "linear",
        "backoffDelay": f"PT{backoff_s:g}S",
        "timeout": f"PT{timeout_s:g}S",
    }
