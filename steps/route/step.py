"""The step `route`: a job under a public name goes on to the model that its rule chooses."""

from dataclasses import replace
from typing import Final

from eventing.errors import BadRequest
from eventing.job.job import JobError
from steps.handler import Continue, Refuse, StepCall, StepOutcome, wrong_setting
from steps.route.tiers import choose, parse_rule

_NO_TIER: Final = JobError(
    code="model_not_allowed", message="this tenant may use none of the model's tiers", field="model"
)


async def route(call: StepCall) -> StepOutcome:
    """Settings: `steps.route.tiers.TierRule`. The caller is shown `asked`, `answered` and `reason`."""
    try:
        rule = parse_rule(call.settings)
    except BadRequest as error:
        return wrong_setting(error)
    choice = choose(rule, call.request, tenant=call.job.tenant, job_id=call.job.id)
    if choice is None:
        return Refuse(error=_NO_TIER)
    body = {**call.request.body, "model": choice.model}
    detail = {
        "asked": call.job.request.model,
        "answered": choice.model,
        "reason": choice.reason,
        "rules": list(choice.rules),
    }
    return Continue(request=replace(call.request, body=body), detail=detail)
