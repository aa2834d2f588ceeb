"""The stack's own HTTP server: the activator, and the state of activator and fleet.

Called by the broker's pump (deliveries), `torpor status` and Prometheus. Bound to loopback only.
"""

from typing import Any, Protocol

from prometheus_client import Gauge
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from eventing.broker.queue import QueueView
from eventing.process.probe import metrics_page
from torpor.local.data_dir import Addresses
from torpor.local.predictors.activator import Activator
from torpor.local.predictors.fleet import Fleet
from torpor.local.predictors.replica import LocalReplica

_replicas = Gauge(
    "torpor_replicas", "Predictors, by state; `wanted` is what the autoscaler asks for.", ["state"]
)
_wanted = Gauge("torpor_replicas_wanted", "Predictors that the autoscaler asks for.", ["model"])
_held = Gauge(
    "torpor_activator_requests", "Requests at the activator, by where they are.", ["where"]
)


class Watched(Protocol):
    """The state that is shown."""

    addresses: Addresses
    replicas: dict[str, LocalReplica]
    fleet: Fleet | None


def status_app(stack: Watched, activator: Activator, view: QueueView, queue: str) -> Starlette:
    """`/events` is the activator; `/status` and `/metrics` show the state."""

    async def status(_: Request) -> Response:
        return JSONResponse(await describe(stack, activator, view, queue))

    async def metrics(request: Request) -> Response:
        _measure(stack, activator, queue.removeprefix("requests-"))
        return metrics_page(request)

    return Starlette(
        routes=[
            Route("/events", activator.handle, methods=["POST"]),
            Route("/status", status),
            Route("/metrics", metrics),
        ]
    )


async def describe(
    stack: Watched, activator: Activator, view: QueueView, queue: str
) -> dict[str, Any]:
    """Addresses, replicas, activator and queue as plain data."""
    fleet = stack.fleet
    depth = await view.depth(queue)
    return {
        "addresses": {"api": stack.addresses.api, "broker": stack.addresses.broker},
        "replicas": {
            "wanted": fleet.wanted if fleet else 0,
            "ready": fleet.ready if fleet else 0,
            "crashes": fleet.crashes if fleet else 0,
            "last_failure": fleet.last_failure if fleet else "",
            "list": [
                {
                    "id": r.id,
                    "pid": r.pid,
                    "state": r.state,
                    "in_flight": r.in_flight,
                    "ready_after_s": round(r.ready_after_s, 2),
                }
                for r in stack.replicas.values()
            ],
        },
        "activator": {"waiting": activator.waiting, "in_flight": activator.in_flight},
        "queue": {
            "name": queue,
            "waiting": {str(lane): n for lane, n in depth.waiting.items()},
            "pending": depth.pending,
            "retrying": depth.retrying,
            "lag": depth.lag,
            "settled_per_minute": round(depth.settled_per_minute, 1),
        },
    }


def _measure(stack: Watched, activator: Activator, model: str) -> None:
    if stack.fleet is not None:
        _wanted.labels(model).set(stack.fleet.wanted)
        _replicas.labels("wanted").set(stack.fleet.wanted)
        _replicas.labels("ready").set(stack.fleet.ready)
        _replicas.labels("alive").set(stack.fleet.alive)
    _held.labels("waiting").set(activator.waiting)
    _held.labels("in_flight").set(activator.in_flight)
