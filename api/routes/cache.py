"""`/v1/cache`: answers that are served again, forgotten one by one or all at once.

Called by `api.wiring`. Jobs and their results are not touched: only what other calls are answered with.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

from starlette.responses import Response
from typing_extensions import TypedDict

from api.auth.principal import Scope
from api.http.described import described
from api.job.catalog import Catalog
from api.openapi.operation import Body
from api.routes.jobs import json_response
from api.routes.route import Call, Routes
from eventing.errors import BadRequest, NotFound
from eventing.job.cache.followers import KeptAnswers
from eventing.job.call.rule import FLAG, NAME, check_fields, object_schema


@dataclass(frozen=True, slots=True)
class CacheDeps:
    """The dependencies of `/v1/cache`."""

    answers: KeptAnswers
    catalog: Catalog


class ForgottenView(TypedDict):
    """The entry that is gone."""

    id: str
    object: Literal["cache.entry"]
    deleted: bool


@described
class InvalidatedView(TypedDict):
    """What was, or would be, voided."""

    object: Literal["cache.invalidation"]
    dry_run: bool
    model: str | None
    entries: int
    """Kept answers; those on their way are not kept either"""


routes: Routes[CacheDeps] = Routes("cache")

_FIELDS: Final = {"dry_run": FLAG, "model": NAME}
_INVALIDATION: Final = Body(
    "CacheInvalidation",
    object_schema({}, _FIELDS)
    | {"description": "`dry_run` is true unless it is false; without `model`, all models"},
)


@routes.operation(
    "DELETE",
    "/v1/cache/entries/{id}",
    Scope.JOBS_WRITE,
    answers=ForgottenView,
    refuses=(404,),
)
async def forget_cached_answer(call: Call[CacheDeps]) -> Response:
    """Forget a kept answer.

    By the `key` of a job's `cache`, or of a `Cache-Status`. The job that gave it stays.
    """
    name = call.request.path_params["id"]
    if not await call.deps.answers.forget_answer(call.principal.tenant, name):
        raise NotFound("no such entry")
    return json_response({"id": name, "object": "cache.entry", "deleted": True})


@routes.operation(
    "POST",
    "/v1/cache/invalidate",
    Scope.JOBS_WRITE,
    body=_INVALIDATION,
    answers=InvalidatedView,
)
async def invalidate_cache(call: Call[CacheDeps]) -> Response:
    """Forget all kept answers, or those of a model.

    A dry run unless `dry_run` is false: it only counts.
    """
    body = await call.read_object()
    for name in body.keys() - _FIELDS.keys():
        raise BadRequest(f"{name:.64} is not supported", name[:64])
    check_fields(body, _FIELDS)
    model: Any = body.get("model")
    is_dry_run = body.get("dry_run") is not False
    models = [model] if model else [card.name for card in call.deps.catalog.cards]
    count = await call.deps.answers.invalidate_answers(
        call.principal.tenant, models, is_all=not model, is_dry_run=is_dry_run
    )
    return json_response(
        {
            "object": "cache.invalidation",
            "dry_run": is_dry_run,
            "model": model,
            "entries": count,
        }
    )
