"""`/v1/audits`: what critics made of a tenant's answers.

Called by `api.wiring`. The rate over all tenants is the operator's (`torpor_hallucination_rate`).
"""

from dataclasses import dataclass
from typing import Literal

from starlette.responses import Response
from typing_extensions import TypedDict

from api.audit.critic import Verdict
from api.audit.store import Audit, AuditStore
from api.auth.principal import Scope
from api.http.described import described
from api.http.parameter import AFTER, LIMIT, ORDER
from api.routes.jobs import json_response
from api.routes.route import Call, Routes
from api.view.page import Page, as_page
from eventing.errors import NotFound
from eventing.job.job import JobId


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRouteDeps:
    """The dependencies of `/v1/audits`."""

    audits: AuditStore


@described
class AuditView(TypedDict):
    """The audit of one job. Verdicts are a critic's, and critics err: they are for rates, not for single answers."""

    id: str
    object: Literal["audit"]
    job: str
    model: str
    """The model that answered"""
    critic: str
    """The model that judges"""
    critic_version: str | None
    """Names its weights, its instructions and the golden set that it was measured with"""
    status: Literal["queued", "completed", "failed"]
    verdict: Literal["supported", "unsupported"] | None
    """Whether every claim of the answer stands in its passages"""
    reason: str | None
    """Why there is no verdict"""
    created_at: int
    completed_at: int | None


class AuditList(Page):
    """A page of audits."""

    data: list[AuditView]


routes: Routes[AuditRouteDeps] = Routes("audits")


@routes.operation(
    "GET", "/v1/audits", Scope.JOBS_READ, parameters=(LIMIT, ORDER, AFTER), answers=AuditList
)
async def list_audits(call: Call[AuditRouteDeps]) -> Response:
    """List audits of the caller's answers, newest first."""
    query, audits = call.request.query_params, call.deps.audits
    after = query.get(AFTER.name)
    ids, has_more = await audits.page(
        call.principal.tenant,
        LIMIT.of(query),
        _job_id(after) if after else None,
        is_ascending=ORDER.of(query) == "asc",
    )
    found = await audits.read(ids)
    own = [each for each in found if each is not None and each.tenant == call.principal.tenant]
    return json_response(as_page([audit_view(each) for each in own], has_more=has_more))


@routes.operation("GET", "/v1/audits/{id}", Scope.JOBS_READ, answers=AuditView)
async def retrieve_audit(call: Call[AuditRouteDeps]) -> Response:
    """Retrieve an audit."""
    audit = await call.deps.audits.get(_job_id(call.request.path_params["id"]))
    if audit is None or audit.tenant != call.principal.tenant:
        raise NotFound("no such audit")
    return json_response(audit_view(audit))


def audit_view(audit: Audit) -> AuditView:
    """The audit as its tenant is shown it."""
    verdict = audit.verdict
    is_counted = verdict is not None and verdict.is_counted
    return {
        "id": audit.id,
        "object": "audit",
        "job": audit.job_id,
        "model": audit.model,
        "critic": audit.critic,
        "critic_version": audit.critic_version or None,
        "status": "queued" if verdict is None else "completed" if is_counted else "failed",
        "verdict": _shown(verdict),
        "reason": None if verdict is None or is_counted else str(verdict),
        "created_at": audit.sampled_ms // 1000,
        "completed_at": audit.judged_ms // 1000 or None,
    }


def _shown(verdict: Verdict | None) -> Literal["supported", "unsupported"] | None:
    match verdict:
        case Verdict.SUPPORTED:
            return "supported"
        case Verdict.UNSUPPORTED:
            return "unsupported"
        case _:
            return None


def _job_id(audit_id: str) -> JobId:
    """The job of an audit's id. Any other text gives an id that no job has."""
    is_ours = audit_id.startswith("audit_")
    return JobId(f"job_{audit_id.removeprefix('audit_')}" if is_ours else "")
