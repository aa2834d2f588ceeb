"""Settings of the steps `list-tools` and `tools`, as they stand in a job's plan. Pure.

Written by `eventing.job.tools.request` for a request that names servers, or by an operator in `pipelines.yaml`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from eventing.errors import BadRequest
from eventing.job.tools.limits import ToolLimits
from eventing.job.tools.request import LIMITS, ON_APPROVAL, SERVERS, OnApproval
from eventing.job.tools.server import LABEL


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSettings:
    """Of one job. `servers` are labels that the operator bound to the model, beside those of the request."""

    servers: tuple[str, ...] = ()
    on_approval: OnApproval = OnApproval.WAIT
    taint: bool = True  #: approvals are asked after a result of an untrusted server
    limits: ToolLimits = field(default_factory=ToolLimits)


_LIMITS: Final = frozenset(each.name for each in fields(ToolLimits))


def parse_tool_settings(settings: Mapping[str, Any]) -> ToolSettings:
    """Raises `BadRequest` naming the setting."""
    for name in settings.keys() - {SERVERS, ON_APPROVAL, "taint", LIMITS}:
        raise BadRequest("is not supported", name)
    servers, limits = settings.get(SERVERS, ()), settings.get(LIMITS, {})
    if not isinstance(servers, list | tuple) or not all(
        isinstance(each, str) and LABEL.match(each) for each in servers
    ):
        raise BadRequest("must be a list of labels", SERVERS)
    if not isinstance(taint := settings.get("taint", True), bool):
        raise BadRequest("must be true or false", "taint")
    if settings.get(ON_APPROVAL, OnApproval.WAIT) not in list(OnApproval):
        raise BadRequest(f"must be one of {', '.join(OnApproval)}", ON_APPROVAL)
    return ToolSettings(
        servers=tuple(servers),
        on_approval=OnApproval(settings.get(ON_APPROVAL, OnApproval.WAIT)),
        taint=taint,
        limits=_limits(limits),
    )


def _limits(given: Any) -> ToolLimits:
    if not isinstance(given, Mapping):
        raise BadRequest("must be an object", LIMITS)
    for name, value in given.items():
        if name not in _LIMITS:
            raise BadRequest("is not supported", f"limits.{name}")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadRequest("must be a whole number from 1", f"limits.{name}")
    return ToolLimits(**given)
