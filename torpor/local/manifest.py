"""The local stack as cluster manifests: Triggers, a Knative Service, a ScaledObject.

Called by the stack, which gives them to the same parsers that read a user's YAML: the broker's `parse_trigger`,
`knative.autoscaling.read_knative` and `read_scaled_object`. Pure.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from eventing.broker.trigger import PARALLELISM
from eventing.cloudevent.job_event import PLANNED, PREPARED, REQUESTED
from eventing.cloudevent.tool_event import CALLED
from eventing.job.moderation.inline import inline_names
from eventing.job.plan import LIST_TOOLS_STEP, NO_PIPELINES, TOOLS_STEP, Pipelines
from eventing.job.tools.server import NO_TOOLS, ToolConfig
from eventing.redis import keys
from eventing.store.vector_store.note import WORK_TYPES
from eventing.store.vector_store.query import RETRIEVE_STEP, SEARCH_STEP
from torpor.local.settings import StackSettings

STRAYS: Final = "strays"
STEP_RETRY: Final = 10
STEP_TIMEOUT_S: Final = 120
STEP_PARALLELISM: Final = 32
Manifest = Mapping[str, Any]


def triggers(
    models: Mapping[str, StackSettings],
    *,
    activator_url: Callable[[str], str],
    api_url: str,
    pipelines: Pipelines = NO_PIPELINES,
    steps_url: str = "",
    tools: ToolConfig = NO_TOOLS,
) -> list[Manifest]:
    """Requests for a model go to its activator, those for an unknown model to the api. Results are not delivered:
    the predictor has ended the job in the store, where the api reads its end. Where a model has a plan, the
    activator gets what is prepared, and requests go to the steps; each step has a queue of its own. Searches of
    vector stores, and calls that ask for one, need no plan.
    """
    unknown = [{"not": {"exact": {"model": model}}} for model in {**models, **pipelines}]
    planned = {step.name: None for plan in pipelines.values() for step in plan.steps}
    asked = (SEARCH_STEP, RETRIEVE_STEP, *inline_names(pipelines))
    if tools.queues:
        asked = (*asked, LIST_TOOLS_STEP, TOOLS_STEP)
    steps = {**dict.fromkeys(asked), **planned} if steps_url else planned
    return [
        *(
            _requests(settings, name, activator_url(name), is_prepared=name in pipelines)
            for name, settings in models.items()
        ),
        *(_plans(name, steps_url) for name in pipelines),
        *(_step(name, steps_url) for name in steps),
        *([_vector_stores(steps_url)] if steps_url else []),
        *(_tool_calls(tools, label, steps_url) for label in tools.queues),
        _trigger(
            STRAYS,
            filters=[{"exact": {"type": REQUESTED}}, *unknown],
            subscriber=api_url,
            delivery=_delivery(retry=200, backoff_s=0.5, timeout_s=10),
            parallelism=4,
        ),
    ]


def _requests(
    settings: StackSettings, model: str, activator_url: str, *, is_prepared: bool
) -> Manifest:
    longest_s = settings.max_job_seconds + 60
    # At least one retry each 15 s for twice the longest job: a job that runs in another predictor
    # is never given up.
    patient = _delivery(retry=2 * longest_s // 15 + 10, backoff_s=1, timeout_s=longest_s)
    types = [PREPARED] if is_prepared else [REQUESTED, PREPARED]
    return _trigger(
        requests_queue(model),
        filters=[_any_type(*types), {"exact": {"model": model}}],
        subscriber=activator_url,
        delivery=patient,
        parallelism=settings.max_replicas * settings.container_concurrency,
    )


def _plans(model: str, steps_url: str) -> Manifest:
    """Requests that have no plan yet: of jobs from before their model had one."""
    return _trigger(
        f"plans-{model}",
        filters=[{"exact": {"type": REQUESTED, "model": model}}],
        subscriber=steps_url,
        delivery=_delivery(retry=250, backoff_s=0.5, timeout_s=60),
        parallelism=4,
    )


def _step(name: str, steps_url: str) -> Manifest:
    """A queue for each step: its tries are the step's attempts."""
    return _trigger(
        f"step-{name}",
        filters=[{"exact": {"type": PLANNED, "step": name}}],
        subscriber=steps_url,
        # Few tries, since input that kills the process kills it in each. A step that is unavailable is waited for
        # as long as its job may take; one that may be skipped is, after the 17 minutes that all retries last.
        delivery={
            **_delivery(retry=STEP_RETRY, backoff_s=1, timeout_s=STEP_TIMEOUT_S),
            "backoffPolicy": "exponential",
        },
        parallelism=STEP_PARALLELISM,
    )


def _vector_stores(steps_url: str) -> Manifest:
    """Files to be indexed. A large one takes minutes; how often one is tried is the record's affair."""
    return _trigger(
        "vector-stores",
        filters=[_any_type(*WORK_TYPES)],
        subscriber=steps_url,
        delivery=_delivery(retry=20, backoff_s=1, timeout_s=1800),
        parallelism=4,
    )


def _tool_calls(tools: ToolConfig, label: str, steps_url: str) -> Manifest:
    """Calls of one server's tools, so that a slow one holds up no other."""
    server = tools.servers.get(label)
    longest_s = (
        -(-tools.queues[label] // 1000) + 30
    )  # a send that runs into its limit is settled after it
    return _trigger(
        f"tool-{label}",
        filters=[{"exact": {"type": CALLED, "toolserver": label}}],
        subscriber=steps_url,
        delivery={
            **_delivery(retry=STEP_RETRY, backoff_s=1, timeout_s=longest_s),
            "backoffPolicy": "exponential",
        },
        parallelism=server.parallelism if server else STEP_PARALLELISM,
    )


def _any_type(*types: str) -> Manifest:
    return {"any": [{"exact": {"type": each}} for each in types]}


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
