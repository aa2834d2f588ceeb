"""The steps that the tools of a request become: `list-tools` before the predictor, `tools` after it. Pure.

Called by the broker's intake beside `inline_steps`, and by the api. Tools are named by a request (entries of
`type: "mcp"`), or bound by the operator to a model's name: its plan then has `list-tools` with the setting
`servers: [LABEL, ...]`, and `tools`.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

from eventing.errors import BadRequest, InvalidJob
from eventing.job.call.rule import TEXT, check
from eventing.job.job import JobRequest
from eventing.job.passage import text_of, urls_in
from eventing.job.plan import LIST_TOOLS_STEP, TOOLS_STEP, Hold, Pipelines, Plan, PlannedStep
from eventing.job.tools.asked import CREDENTIALS, MCP, AskedServer, asked_servers, check_own_names
from eventing.job.tools.limits import ASKED, NAMES, ToolLimits, check_limits
from eventing.job.tools.server import Approval, ToolConfig, ToolServer
from eventing.known_fields import known_value
from eventing.process.egress import AllowList, check_url

SERVERS: Final = "servers"
"""Setting of both steps: labels of servers that the operator bound to the model."""
ON_APPROVAL: Final = "on_approval"
LIMITS: Final = "limits"
LINKS: Final = "links"
"""Setting of `tools`: hosts that links in answers may lead to, or `all`. In a job's plan, where a server of it is not
trusted, the addresses that its caller wrote are among them.
"""
EVERY_LINK: Final = "all"
TAINT: Final = "taint"
SETTINGS: Final = frozenset({SERVERS, ON_APPROVAL, TAINT, LIMITS, LINKS})
"""The settings of both steps."""
TOOL_LIMITS: Final = "tool_limits"
"""Field of a request: limits that are lower than the operator's."""
_CHAT: Final = "/v1/chat/completions"


class OnApproval(StrEnum):
    """What a job does whose call needs a person's decision: a setting of the step `tools`, made of the request."""

    WAIT = "wait"  #: it waits, in progress; the jobs API and events
    END = "end"  #: it ends completed, and a follow-up goes on; Responses
    FAIL = "fail"  #: it fails by name, since no person is there to ask; batches, chat completions


def tool_steps(
    request: JobRequest,
    pipelines: Pipelines,
    config: ToolConfig,
    tenant: str,
    on_approval: OnApproval = OnApproval.WAIT,
) -> tuple[PlannedStep, ...]:
    """The steps `list-tools` and `tools` of a request, with their settings; none for most. Raises `InvalidJob` for
    what its tenant may not use, and for what is not served.
    """
    planned = pipelines.get(request.model)
    bound = planned.step(LIST_TOOLS_STEP) if planned else None
    tools = request.body.get("tools") if request.url == _CHAT else None
    asked = asked_servers(tools) if tools else ()
    if not asked and bound is None:
        if request.body.get(TOOL_LIMITS) is not None:
            raise InvalidJob(
                f"body.{TOOL_LIMITS} needs tools that are run here", f"body.{TOOL_LIMITS}"
            )
        return ()
    if request.url != _CHAT:
        raise InvalidJob(f"url: a model with tools answers {_CHAT} alone", "url")
    labels = (*_bound_labels(bound), *(each.label for each in asked))
    for label in labels:
        if labels.count(label) > 1:
            raise _refused(f"the model has a server {label} of its own")
    check_own_names(tools, labels)
    _check_request(request.body)
    _check_choice(request.body.get("tool_choice"), labels)
    serving = config.serving(tenant)
    for server in (*map(_bound, _bound_labels(bound)), *asked):
        _check_server(server, config, serving, tenant)
        if on_approval is OnApproval.FAIL and _may_ask(server, serving.get(server.label)):
            raise _refused(
                f"calls of {server.label} need approval, and a call of this form can not ask for one"
            )
    own = planned.step(TOOLS_STEP) if planned else None
    _check_settings(own)
    settings = {**(own.settings if own else {}), ON_APPROVAL: str(on_approval)}
    settings.update({LIMITS: limits} if (limits := _limits(request.body, own)) else {})
    trusted = {label for label, each in serving.items() if each.is_trusted}
    if (links := settings.pop(LINKS, ())) == EVERY_LINK:
        settings[LINKS] = EVERY_LINK
    elif not trusted.issuperset(labels):
        settings[LINKS] = [*(str(each).lower() for each in links), *_own_urls(request.body)]
    return (
        bound or PlannedStep(name=LIST_TOOLS_STEP),
        PlannedStep(name=TOOLS_STEP, settings=settings),
    )


def _check_settings(own: PlannedStep | None) -> None:
    """Raises for a setting that there is not: in a recorded plan it says nothing, since a newer version may have it."""
    for name in own.settings.keys() - SETTINGS if own else ():
        raise _refused(f"the step tools of this model has no setting {name:.60}")


def _own_urls(body: Mapping[str, Any]) -> list[str]:
    """The addresses that the caller wrote: not the model, and no tool."""
    messages = body.get("messages")
    return urls_in(
        text_of(each)
        for each in (messages if isinstance(messages, list) else ())
        if isinstance(each, Mapping) and each.get("role") in _CALLERS
    )


_CALLERS: Final = ("system", "developer", "user")


def check_hold(plan: Plan | None) -> None:
    """Raises `InvalidJob` for a plan with server tools that holds its answer back: its turns would be held with it."""
    if plan is not None and plan.step(TOOLS_STEP) is not None and plan.hold is not Hold.NONE:
        raise InvalidJob(
            f"body.tools: the steps of this model hold its answer back (hold: {plan.hold}), and tools can not be "
            "run with that",
            "body.tools",
        )


def on_approval_of(plan: Plan | None) -> OnApproval:
    """What a job with this plan does when a call needs a decision. Raises `NewerRecord`."""
    step = plan.step(TOOLS_STEP) if plan else None
    given = step.settings.get(ON_APPROVAL, OnApproval.WAIT) if step else OnApproval.WAIT
    return known_value(OnApproval, given)


def _bound_labels(step: PlannedStep | None) -> tuple[str, ...]:
    """The servers that the operator bound to the model."""
    named = step.settings.get(SERVERS, ()) if step else ()
    if not isinstance(named, list | tuple) or not all(isinstance(each, str) for each in named):
        raise _refused("the settings of list-tools of this model have no list of labels")
    return tuple(named)


def _bound(label: str) -> AskedServer:
    """A server that the operator bound: its configuration alone says which calls need approval."""
    return AskedServer(label=label, require_approval=Approval.NEVER)


def _check_server(
    server: AskedServer, config: ToolConfig, serving: Mapping[str, ToolServer], tenant: str
) -> None:
    if not server.url and server.label not in serving:
        known = ", ".join(sorted(serving)) or "none"
        raise _refused(f"no server {server.label} is configured for you; there are: {known}")
    if server.url and not config.allows_urls(tenant):
        raise _refused(f"{server.label}: you may not name servers by address (server_url)")
    if server.url and server.label in config.servers:
        raise _refused(f"{server.label} is the label of a server of the operator's")
    if server.url:
        try:
            check_url(server.url, AllowList(), "server_url")
        except InvalidJob as error:
            raise _refused(f"{server.label}: {error.message}") from error


def _may_ask(server: AskedServer, configured: ToolServer | None) -> bool:
    """True where a call of the server can need approval by what is configured and asked."""
    of_operator = configured.approval if configured and not server.url else Approval.NEVER
    return of_operator == Approval.ALWAYS or server.require_approval != Approval.NEVER


def _check_request(body: Mapping[str, Any]) -> None:
    if body.get("n") not in (None, 1):
        raise InvalidJob("body.n must be 1 beside tools that are run here", "body.n")
    for place, tool in enumerate(body.get("tools") or ()):
        for name in CREDENTIALS:
            if isinstance(tool, Mapping) and tool.get("type") == "mcp" and tool.get(name):
                where = f"body.tools[{place}].{name}"
                raise InvalidJob(
                    f"{where} is taken by POST /v1/jobs and /v1/responses alone, which seal it",
                    where,
                )


def _check_choice(choice: Any, labels: Sequence[str]) -> None:
    """Raises `InvalidJob` for a `tool_choice` that names no server of the request. Names of functions are checked
    with the body.
    """
    where = "body.tool_choice"
    if not isinstance(choice, Mapping) or choice.get("type", "function") == "function":
        return
    if choice["type"] != MCP:
        raise InvalidJob(f"{where}.type must be function or mcp beside a server's tools", where)
    check(f"{where}.", choice.get("server_label"), TEXT, "server_label")
    if choice["server_label"] not in labels:
        raise InvalidJob(f"{where}.server_label is none of tools", f"{where}.server_label")
    if choice.get("name") is not None:
        check(f"{where}.", choice["name"], TEXT, "name")


def _limits(body: Mapping[str, Any], own: PlannedStep | None) -> dict[str, Any]:
    """The limits of the model's plan, and of the request where they are lower."""
    configured = own.settings.get(LIMITS) if own else None
    limits = {**configured} if isinstance(configured, Mapping) else {}
    asked = {**_asked_limits(body)}
    if (calls := body.get("max_tool_calls")) is not None:
        asked["max_calls"] = min(calls, asked.get("max_calls", calls))
    if body.get("parallel_tool_calls") is False:
        asked["parallel"] = 1
    capped = ToolLimits(**_checked(limits, LIMITS)).capped(asked)
    return limits | {name: getattr(capped, name) for name in asked}


def _asked_limits(body: Mapping[str, Any]) -> dict[str, Any]:
    asked = body.get(TOOL_LIMITS)
    return {} if asked is None else _checked(asked, f"body.{TOOL_LIMITS}", ASKED)


def _checked(limits: Any, where: str, names: Sequence[str] = NAMES) -> dict[str, Any]:
    try:
        return check_limits(limits, where, names)
    except BadRequest as error:
        raise InvalidJob(f"{error.field} {error.message}", error.field) from error


def _refused(reason: str) -> InvalidJob:
    return InvalidJob(f"body.tools: {reason}", "body.tools")
