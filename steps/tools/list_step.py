"""The step `list-tools`: asks a job's servers for their tools and pins them.

All servers are asked at once. One that can not be asked is waited for; in the end the job goes on without its tools,
and fails by name where that leaves none.
"""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any, Final

import orjson

from eventing.errors import BadRequest, Unavailable
from eventing.job.job import Job, JobError
from eventing.job.tools.known_list import MOST_KEPT, ListStatus, address_digest, kept_tools
from eventing.job.tools.request import SERVERS
from eventing.job.tools.server import URLS, Pin, ServerKind, ToolServer
from eventing.job.tools.tool_list import (
    PinnedServer,
    PinnedTool,
    definition_of,
    list_digest,
    to_json,
)
from eventing.store.steps.redis_tool_lists import RedisToolLists
from steps.handler import Continue, Refuse, SetAside, StepCall, StepOutcome, wrong_setting
from steps.tools import metrics
from steps.tools.client.answer import NotSent, Refused, Target
from steps.tools.client.clients import Clients
from steps.tools.listing import (
    body_with_tools,
    check_bounds,
    every_tool,
    function_definition,
    pinned_server,
)
from steps.tools.settings import recorded_settings
from steps.tools.targets import Targets, asked_of

_LIST_S: Final = 30.0
MOST_ATTEMPTS: Final = 3
"""Runs of the step in which every server that is up must answer; after them the job goes on without those that do not.
"""


class ToolsAway(SetAside):
    """No server of the job has tools, and one that could have some does not answer."""

    code = "tools_unavailable"


class ListTools:
    """The handler of the step `list-tools`. Targets, clients and lists belong to the caller."""

    def __init__(self, targets: Targets, clients: Clients, lists: RedisToolLists) -> None:
        self._targets = targets
        self._clients = clients
        self._lists = lists

    async def __call__(self, call: StepCall) -> StepOutcome:
        """Raises `Unavailable` while a server can not be asked, and in the end `ToolsAway`."""
        try:
            settings = recorded_settings(call.settings)
        except BadRequest as error:
            return wrong_setting(error)
        labels = [*settings.servers, *asked_of(call.job)]
        if not labels:
            return Continue()
        await self._clients.ready()
        mark = secrets.token_hex(8)
        listed = await asyncio.gather(
            *(
                self._pinned(call.job, label, mark, is_last=call.attempt >= self._most(label))
                for label in labels
            )
        )
        if not any(server.tools for server in listed):
            reasons = "; ".join(
                f"{each.server_label}: {each.error or 'no tools'}" for each in listed
            )
            if any(each.is_away for each in listed):
                raise ToolsAway(reasons)
            return Refuse(error=JobError(code=ToolsAway.code, message=reasons))
        try:
            check_bounds(listed, self._targets.limits(call.job))
            body = body_with_tools(call.request.body, listed)
        except BadRequest as error:
            refusal = JobError(code=error.code, message=error.message, field=error.field)
            return Refuse(error=refusal)
        return Continue(
            request=replace(call.request, body=body),
            tool_list=to_json(listed).decode(),
            detail={SERVERS: [_detail(each) for each in listed]},
        )

    def _most(self, label: str) -> int:
        """The runs in which a server must answer: one that wakes has its time for that too."""
        asleep = self._targets.sleeper(label)
        return MOST_ATTEMPTS + (ceil(asleep[1] / _LIST_S) if asleep else 0)

    async def _pinned(self, job: Job, label: str, mark: str, *, is_last: bool) -> PinnedServer:
        """The server with its tools, or with the reason why it has none. Raises `Unavailable`."""
        try:
            target = self._targets.target(job, label)
            definitions = await self._definitions(job, target)
        except Refused as error:
            return PinnedServer(server_label=label, error=f"{error.reason}: {error}", mark=mark)
        except NotSent as error:
            if not is_last:
                raise Unavailable(f"tool server {label}: {error}") from error
            return PinnedServer(server_label=label, error=str(error), is_away=True, mark=mark)
        server = self._targets.configured(job, label)
        every = every_tool(label, definitions, server)
        if server is not None and await self._has_changed(job, server, every):
            words = f"its tools are not those that were pinned; torpor tools accept {label}"
            pinned = PinnedServer(
                server_label=label, error=f"{metrics.TOOL_CHANGED}: {words}", mark=mark
            )
        else:
            asked = asked_of(job).get(label)
            pinned = pinned_server(label, every, server, asked, origin=target.origin, mark=mark)
        metrics.count_change(pinned.error, server.label if server else URLS, metrics.AT_JOB)
        return pinned

    async def _has_changed(self, job: Job, server: ToolServer, every: Sequence[PinnedTool]) -> bool:
        """True where the tenant's jobs may not use this list. Notes it: it is what the api shows."""
        if server.kind is ServerKind.FUNCTION or server.tools:
            return False  # the operator's own words
        has_own = server.label in orjson.loads(job.sealed or "{}")
        if has_own and server.pinned_for is Pin.JOB:
            return False  # the list of its credentials is not what others of the tenant are shown
        does_pin = server.pinned_for is not Pin.JOB and not server.digest
        status = await self._lists.see(
            job.tenant,
            server.label,
            address=address_digest(server.url),
            digest=list_digest(every),
            tools=kept_tools(every),
            does_pin=does_pin,
            may_lack=has_own and len(every) <= MOST_KEPT,
        )
        return does_pin and status is ListStatus.CHANGED

    async def _definitions(self, job: Job, target: Target) -> tuple[Mapping[str, Any], ...]:
        server = self._targets.configured(job, target.label)
        if server is not None and server.kind is ServerKind.FUNCTION:
            return (function_definition(server),)
        if server is not None and server.tools:
            return tuple(definition_of(each) for each in server.tools)
        return (await self._clients.mcp().list_tools(target, _LIST_S)).tools


def _detail(server: PinnedServer) -> dict[str, Any]:
    said: dict[str, Any] = {"server_label": server.server_label, "tools": len(server.tools)}
    return said | ({"error": server.error[:200]} if server.error else {"digest": server.digest})
