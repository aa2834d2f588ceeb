"""The search of OpenAI's vector stores: a job in the interactive lane that a step answers.

Called by `api.wiring`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from api.auth.principal import Scope
from api.job.submission import SubmitDeps, step_job, submit_new
from api.job.submit_options import SUBMIT_HEADERS, parse_submit_options
from api.openapi.operation import Body
from api.routes.held import HeldDeps, ended_job, job_of_repeat
from api.routes.jobs import json_response, naming
from api.routes.route import Call, Routes
from api.vector_store.request import SEARCH_SCHEMA, search_body
from api.view.outcome import failure_of
from api.view.vector_store import SearchResults
from eventing.clock import Clock
from eventing.errors import NotFound
from eventing.job.job import Job, JobRequest, Lane
from eventing.job.plan import PlannedStep
from eventing.store.vector_store.query import SEARCH_STEP, SEARCH_URL
from eventing.store.vector_store.record import StoreStatus
from eventing.store.vector_store.store import VectorStores


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchDeps:
    """The dependencies of a search."""

    stores: VectorStores
    submission: SubmitDeps
    held: HeldDeps
    clock: Clock


routes: Routes[SearchDeps] = Routes("vector stores")


@routes.operation(
    "POST",
    "/v1/vector_stores/{id}/search",
    Scope.JOBS_WRITE,
    parameters=SUBMIT_HEADERS,
    body=Body("VectorStoreSearchRequest", SEARCH_SCHEMA),
    answers=SearchResults,
    refuses=(409, 500, 504),
)
async def search_vector_store(call: Call[SearchDeps]) -> Response:
    """Search a vector store.

    By meaning and by words, fused by rank; the ranker `none` compares vectors alone. It is a job like any other, in
    the interactive lane, that a step answers.
    """
    body, deps = await call.read_object(), call.deps
    store = await deps.stores.get(call.principal.tenant, call.request.path_params["id"])
    if store.status(deps.clock.wall_ms() // 1000) is StoreStatus.EXPIRED:
        raise NotFound(f"the vector store {store.id} has expired")
    wanted = {**search_body(body), "vector_store_ids": [store.id]}
    job = await job_of_repeat(deps.held, call, body) or await _submitted(call, wanted)
    with naming(job):
        ended = await ended_job(deps.held, call, body, job)
        if failure := failure_of(ended):
            raise failure
    return json_response(ended.result or {}, headers={"torpor-job-id": job.id})


async def _submitted(call: Call[SearchDeps], wanted: Mapping[str, Any]) -> Job:
    options = parse_submit_options({}, call.request.headers, lane=Lane.INTERACTIVE)
    submission, step = call.deps.submission, PlannedStep(name=SEARCH_STEP)
    request = JobRequest(url=SEARCH_URL, body=wanted)
    new = step_job(submission, call.principal, request, options, step)
    key = options.idempotency_key
    return (await submit_new(submission, call.principal, new, idempotency_key=key))[0]
