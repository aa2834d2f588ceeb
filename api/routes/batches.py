"""OpenAI's batches: create, retrieve, list, cancel. The runner does the work.

Called by `api.wiring`.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from starlette.responses import Response

from api.auth.principal import Scope
from api.batch.batch import RESPONSES, Batch, BatchStatus, BatchView, check_endpoint
from api.batch.store import BatchStore
from api.http.metadata import METADATA, check_metadata
from api.http.parameter import AFTER, IDEMPOTENCY_KEY, LIMIT
from api.limit.limit import check_moved, moved_to
from api.openapi.operation import Body
from api.routes.files import EXPIRES_AFTER, check_expires_after, keyed_hex
from api.routes.jobs import json_response
from api.routes.route import Call, Routes
from api.view.page import Page, page_of
from eventing.clock import Clock
from eventing.errors import BadRequest, IdempotencyConflict, NotFound
from eventing.job.job import RUNNABLE_URLS
from eventing.store.file_store import FileStore, new_file_id


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchDeps:
    """The dependencies of `/v1/batches`."""

    batches: BatchStore
    files: FileStore
    clock: Clock
    moved_tenants: Mapping[str, str]


routes: Routes[BatchDeps] = Routes("batches")

_REQUEST: Final = Body(
    "BatchRequest",
    {
        "type": "object",
        "required": ["input_file_id", "endpoint", "completion_window"],
        "properties": {
            "input_file_id": {"type": "string", "description": "a file of the purpose `batch`"},
            "endpoint": {"enum": [*RUNNABLE_URLS, RESPONSES]},
            "completion_window": {"const": "24h"},
            "metadata": METADATA,
            "output_expires_after": EXPIRES_AFTER,
        },
    },
)


class BatchList(Page):
    """A page of batches, newest first."""

    data: list[BatchView]


@routes.operation(
    "POST",
    "/v1/batches",
    Scope.JOBS_WRITE,
    parameters=(IDEMPOTENCY_KEY,),
    body=_REQUEST,
    answers=BatchView,
)
async def create_batch(call: Call[BatchDeps]) -> Response:
    """Run an uploaded file of requests.

    An invalid line fails alone; the error file has it under its number.
    """
    body = await call.read_object()
    if body.get("completion_window") != "24h":
        raise BadRequest("completion_window must be 24h", "completion_window")
    endpoint = check_endpoint(body.get("endpoint"))
    metadata = check_metadata(body.get("metadata"), "metadata")
    kept_s = _output_kept_s(body.get("output_expires_after"))
    try:
        card = await call.deps.files.card(call.principal.tenant, str(body.get("input_file_id", "")))
    except NotFound as error:
        raise BadRequest(
            "input_file_id is not the id of one of your files", "input_file_id"
        ) from error
    if card.purpose != "batch":
        raise BadRequest("the file was not uploaded with the purpose batch", "input_file_id")
    wanted = Batch(
        id=f"batch_{keyed_hex(call)}",
        tenant=call.principal.tenant,
        endpoint=endpoint,
        input_file_id=card.id,
        output_file_id=new_file_id(),
        error_file_id=new_file_id(),
        created_at=call.deps.clock.wall_ms() // 1000,
        metadata=metadata,
        output_kept_s=kept_s,
        allowed_models=tuple(sorted(call.principal.models)),
    )
    await _check_moved(call, wanted)
    batch = await call.deps.batches.create(wanted)
    if not batch.asks_the_same_as(wanted):
        raise IdempotencyConflict("the same key was used before with another body", "body")
    return json_response(batch.view())


@routes.operation(
    "GET", "/v1/batches", Scope.JOBS_READ, parameters=(LIMIT, AFTER), answers=BatchList
)
async def list_batches(call: Call[BatchDeps]) -> Response:
    """List batches, newest first."""
    query = call.request.query_params
    batches = await call.deps.batches.list(call.principal.tenant)
    return json_response(page_of([batch.view() for batch in batches], query, LIMIT.of(query)))


@routes.operation("GET", "/v1/batches/{id}", Scope.JOBS_READ, answers=BatchView)
async def retrieve_batch(call: Call[BatchDeps]) -> Response:
    """Retrieve a batch."""
    return json_response((await _own(call)).view())


@routes.operation("POST", "/v1/batches/{id}/cancel", Scope.JOBS_WRITE, answers=BatchView)
async def cancel_batch(call: Call[BatchDeps]) -> Response:
    """Cancel a batch. Finished lines are kept; the runner cancels the rest in its next round."""
    batch = await _own(call)
    if not batch.status.is_final:
        await call.deps.batches.ask_to_cancel(batch.id)
        batch = await _own(call)
    view = batch.view()
    if not batch.status.is_final:
        view["status"] = BatchStatus.CANCELLING
    return json_response(view)


def _output_kept_s(wish: Any) -> int:
    """Seconds to keep the result files; 0 when not set. Raises `BadRequest`."""
    name = "output_expires_after"
    if wish is None:
        return 0
    if not isinstance(wish, dict):
        raise BadRequest(f"{name} must be an object of anchor and seconds", name)
    return check_expires_after(wish.get("anchor"), wish.get("seconds"), name)


async def _check_moved(call: Call[BatchDeps], wanted: Batch) -> None:
    """Raises `TenantMoved` for a new batch of a tenant that another cell serves."""
    moved, tenant = call.deps.moved_tenants, wanted.tenant
    if not moved_to(moved, tenant):
        return
    with suppress(NotFound):
        await call.deps.batches.get(wanted.id, tenant)
        return  # it was accepted before
    check_moved(moved, tenant)


async def _own(call: Call[BatchDeps]) -> Batch:
    return await call.deps.batches.get(call.request.path_params["id"], call.principal.tenant)
