"""Settings of the steps `list-tools` and `tools`, as they stand in a job's plan. Pure.

Written by `eventing.job.tools.request` for a request that names servers, or by an operator in `pipelines.yaml`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eventing.errors import BadRequest
from eventing.job.job import Job
from eventing.job.plan import TOOLS_STEP
from eventing.job.tools.limits import NAMES, ToolLimits, check_limits
from eventing.job.tools.request import (
    EVERY_LINK,
    LIMITS,
    LINKS,
    ON_APPROVAL,
    SERVERS,
    SETTINGS,
    TAINT,
    OnApproval,
)
from eventing.job.tools.server import LABEL, ToolConfig
from eventing.known_fields import check_version, known_value


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSettings:
    """The settings of the step `tools` of one job. `servers` are labels that the operator bound to the model, beside
    those of the request.
    """

    servers: tuple[str, ...] = ()
    on_approval: OnApproval = OnApproval.WAIT
    taint: bool = True  #: approvals are asked after a result of an untrusted server
    limits: ToolLimits = field(default_factory=ToolLimits)


def parse_tool_settings(settings: Mapping[str, Any]) -> ToolSettings:
    """The settings of the step `tools`. Raises `BadRequest` naming the setting."""
    for name in settings.keys() - SETTINGS:
        raise BadRequest("is not supported", name)
    servers, limits = settings.get(SERVERS, ()), settings.get(LIMITS, {})
    if not isinstance(servers, list | tuple) or not all(
        isinstance(each, str) and LABEL.match(each) for each in servers
    ):
        raise BadRequest("must be a list of labels", SERVERS)
    if not isinstance(taint := settings.get(TAINT, True), bool):
        raise BadRequest("must be true or false", TAINT)
    links = settings.get(LINKS, ())
    if links != EVERY_LINK and not (
        isinstance(links, list | tuple) and all(isinstance(each, str) and each for each in links)
    ):
        raise BadRequest(f"must be a list of hosts, or {EVERY_LINK}", LINKS)
    if settings.get(ON_APPROVAL, OnApproval.WAIT) not in list(OnApproval):
        raise BadRequest(f"must be one of {', '.join(OnApproval)}", ON_APPROVAL)
    return ToolSettings(
        servers=tuple(servers),
        on_approval=OnApproval(settings.get(ON_APPROVAL, OnApproval.WAIT)),
        taint=taint,
        limits=ToolLimits(**check_limits(limits, LIMITS)),
    )


def parse_list_settings(settings: Mapping[str, Any]) -> ToolSettings:
    """The settings of the step `list-tools`, whose limits are those of `tools`. Raises as `parse_tool_settings`."""
    if LIMITS in settings:
        raise BadRequest("is a setting of the step tools", LIMITS)
    return parse_tool_settings(settings)


def recorded_settings(settings: Mapping[str, Any]) -> ToolSettings:
    """The settings of either step in a job's plan, which another version may have made: as in every record, a name that
    is not known says nothing, and a version above ours is refused. Raises `BadRequest`, and `NewerRecord`.
    """
    check_version(settings.get("v"))
    known = {name: value for name, value in settings.items() if name in SETTINGS}
    if isinstance(limits := known.get(LIMITS), Mapping):
        known[LIMITS] = {name: value for name, value in limits.items() if name in NAMES}
    if ON_APPROVAL in known:
        known_value(OnApproval, known[ON_APPROVAL])
    return parse_tool_settings(known)


def limits_of(job: Job, config: ToolConfig) -> ToolLimits:
    """The limits of a job: its plan's, and its tenant's where they are lower. Raises as `recorded_settings`."""
    step = job.plan.step(TOOLS_STEP) if job.plan else None
    own = recorded_settings(step.settings).limits if step else ToolLimits()
    return own.capped(config.limits_of(job.tenant))
