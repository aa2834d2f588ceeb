"""The stack's own HTTP server: the activator, and the state of activator and fleet.

Called by the broker's pump (deliveries), `torpor status` and Prometheus. Bound to loopback only.
"""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from prometheus_client import Gauge
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from eventing.broker.queue.view import QueueView
from eventing.process.probe import metrics_page
from torpor.local.data_dir import Addresses
from torpor.local.predictors.model_service import ModelService

_replicas = Gauge("torpor_replicas", "Predictors, by state.", ["model", "state"])
_wanted = Gauge("torpor_replicas_wanted", "Predictors that the autoscaler asks for.", ["model"])
_held = Gauge(
    "torpor_activator_requests", "Requests at the activator, by where they are.", ["model", "where"]
)

Services = Mapping[str, ModelService]
STEPS_PATH: Final = "/steps/events"
"""Where the activator of the steps takes its deliveries."""


def events_path(model: str) -> str:
    """Where the activator of a model takes its requests."""
    return f"/models/{quote(model, safe='')}/events"


def status_app(
    addresses: Addresses,
    services: Services,
    view: QueueView,
    steps: ModelService | None = None,
) -> Starlette:
    """`/models/MODEL/events` is the activator, `/steps/events` that of the steps; `/status` and `/metrics` show the
    state.
    """

    async def events(request: Request) -> Response:
        model = request.path_params.get("model")
        service = steps if model is None else services.get(model)
        if service is None:
            return Response("no such model", status_code=404)
        return await service.activator.handle(request)

    async def status(_: Request) -> Response:
        return JSONResponse(await describe(addresses, services, view, steps))

    async def metrics(request: Request) -> Response:
        for service in (*services.values(), *([steps] if steps else ())):
            _measure(service)
        return metrics_page(request)

    return Starlette(
        routes=[
            Route("/models/{model:path}/events", events, methods=["POST"]),
            Route(STEPS_PATH, events, methods=["POST"]),
            Route("/status", status),
            Route("/metrics", metrics),
        ]
    )


async def describe(
    addresses: Addresses,
    services: Services,
    view: QueueView,
    steps: ModelService | None = None,
) -> dict[str, Any]:
    """Addresses, and each model's replicas, activator and queue, as plain data; also those of the steps, which have
    no single queue.
    """
    shown: dict[str, Any] = {
        "addresses": {"api": addresses.api, "broker": addresses.broker},
        "models": [await _describe_model(service, view) for service in services.values()],
    }
    return shown if steps is None else shown | {"steps": _describe_service(steps)}


def _describe_service(service: ModelService) -> dict[str, Any]:
    fleet, activator = service.fleet, service.activator
    return {
        "replicas": {
            "wanted": fleet.wanted,
            "ready": fleet.ready,
            "crashes": fleet.crashes,
            "last_failure": fleet.last_failure,
            "list": [
                {
                    "id": r.id,
                    "pid": r.pid,
                    "state": r.state,
                    "in_flight": r.in_flight,
                    "ready_after_s": round(r.ready_after_s, 2),
                }
                for r in service.replicas.values()
            ],
        },
        "activator": {"waiting": activator.waiting, "in_flight": activator.in_flight},
    }


async def _describe_model(service: ModelService, view: QueueView) -> dict[str, Any]:
    depth = await view.depth(service.queue)
    return {
        "model": service.name,
        **_describe_service(service),
        "queue": {
            "name": service.queue,
            "waiting": {str(lane): n for lane, n in depth.waiting.items()},
            "pending": depth.pending,
            "retrying": depth.retrying,
            "lag": depth.lag,
            "settled_per_minute": round(depth.settled_per_minute, 1),
        },
    }


def _measure(service: ModelService) -> None:
    model, fleet, activator = service.name, service.fleet, service.activator
    _wanted.labels(model).set(fleet.wanted)
    _replicas.labels(model, "ready").set(fleet.ready)
    _replicas.labels(model, "alive").set(fleet.alive)
    _held.labels(model, "waiting").set(activator.waiting)
    _held.labels(model, "in_flight").set(activator.in_flight)
