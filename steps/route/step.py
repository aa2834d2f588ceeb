"""The step `route`: a job under a public name goes on to the model that its rule chooses."""

from dataclasses import replace
from functools import partial
from typing import Any, Final

from eventing.errors import BadRequest
from eventing.job.job import JobError, may_use
from steps.handler import Continue, Refuse, StepCall, StepOutcome, wrong_setting
from steps.route.tiers import choose, parse_rule

_NO_TIER: Final = JobError(
    code="model_not_allowed",
    message="this tenant, or its key, may use none of the model's tiers",
    field="model",
)


async def route(call: StepCall) -> StepOutcome:
    """Settings: `steps.route.tiers.TierRule`. The caller is shown `asked`, `answered` and `reason`."""
    try:
        rule = parse_rule(call.settings)
    except BadRequest as error:
        return wrong_setting(error)
    choice = choose(
        rule,
        call.request,
        tenant=call.job.tenant,
        job_id=call.job.id,
        may_use=partial(may_use, call.job.metadata),
    )
    if choice is None:
        return Refuse(error=_NO_TIER)
    body = {**call.request.body, "model": choice.model}
    detail: dict[str, Any] = {
        "asked": call.job.request.model,
        "answered": choice.model,
        "reason": choice.reason,
        "rules": list(choice.rules),
    }
    if choice.instead_of:
        detail["instead_of"] = choice.instead_of
    return Continue(request=replace(call.request, body=body), detail=detail)
