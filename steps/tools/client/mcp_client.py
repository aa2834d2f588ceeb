"""The client of MCP servers over streamable HTTP, of both eras of the specification, by the official SDK.

Imported at the first call only: the SDK takes half a second. One session a call: nothing is kept between two but which
era a server speaks, and its list for as long as the server allows. Sampling and roots are not offered. The tasks
extension is not in the SDK; its methods are here.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx2
import mcp_types
from mcp.client.session import ClientSession
from mcp.shared.dispatcher import ProgressFnT
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import mcp_param_headers, x_mcp_header_map
from mcp_types import CONNECTION_CLOSED, REQUEST_TIMEOUT, UNSUPPORTED_PROTOCOL_VERSION
from pydantic import ValidationError

from eventing.clock import Clock
from eventing.job.tools.tool_list import definition_digest, digest_of_pairs
from steps.tools.client.answer import (
    Answer,
    InDoubt,
    NotSent,
    OnProgress,
    Outgoing,
    Refused,
    Result,
    Target,
    error_result,
)
from steps.tools.client.dialler import Exchange, Redirected, TargetRefused, TooLong
from steps.tools.client.mcp_forms import (
    CALLED,
    Anything,
    TaskCancel,
    TaskGet,
    TaskParams,
    TaskUpdate,
    TaskUpdateParams,
    answer_of,
    definition,
    task_answer,
)
from steps.tools.client.mcp_session import Sessions, trim
from steps.tools.metrics import TOOL_CHANGED

KEY_META: Final = "dev.torpor/idempotencyKey"
"""The idempotency key in `_meta`: the protocol has none of its own."""
KEY_HEADER: Final = "idempotency-key"
LIST_BYTES: Final = 4 * 1024 * 1024
MOST_PAGES: Final = 32
MOST_LISTED: Final = 4096
TOO_MANY: Final = 429
_SERVER_ERROR: Final = 500
_NO_ANSWER: Final = (CONNECTION_CLOSED, REQUEST_TIMEOUT)
_LONGEST_TTL_S: Final = 60.0
_CLOSE_S: Final = 2.0

for _name in ("mcp", "httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)  # they log results, and addresses with keys


@dataclass(frozen=True, slots=True)
class Listed:
    """The definitions of a server's tools."""

    tools: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class _Known:
    """What is kept of a listed tool: its definition's digest, and which arguments are headers as well."""

    digest: str
    header_names: Mapping[tuple[str, ...], str]


class McpClient:
    """Calls tools of MCP servers."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sessions = Sessions(clock)
        self._lists: dict[str, tuple[float, Mapping[str, _Known]]] = {}

    async def list_tools(self, target: Target, timeout_s: float) -> Listed:
        """The server's tools. Raises `NotSent` where it can not be asked, and `Refused`."""
        exchange = _exchange(target, LIST_BYTES)
        listed: Listed | None = None
        try:
            async with (
                asyncio.timeout(timeout_s) as limit,
                self._sessions.open(target, exchange) as session,
            ):
                listed = await self._list(session, target)
                limit.reschedule(asyncio.get_running_loop().time() + _CLOSE_S)
        except Exception as error:  # the SDK raises groups of anything
            if listed is None:
                raise _of_list(_first(error), target) from None
        finally:
            await exchange.aclose()
        assert listed is not None  # noqa: S101
        return listed

    async def call(
        self,
        target: Target,
        call: Outgoing,
        limit_bytes: int,
        on_progress: OnProgress | None = None,
    ) -> Answer:
        """Send the call; `on_progress` hears how far it is. Raises `NotSent`, `Refused` and `InDoubt`."""

        async def send(session: ClientSession, exchange: Exchange) -> Answer:
            known = await self._check_pin(session, target, call)
            headers = {KEY_HEADER: call.key}
            if call.traceparent:
                headers["traceparent"] = call.traceparent
            if known is not None and session.discover_result is not None:
                headers |= mcp_param_headers(known.header_names, call.arguments)
            exchange.arm(headers, limit_bytes)
            meta: Any = {KEY_META: call.key}
            params = mcp_types.CallToolRequestParams(
                name=call.tool,
                arguments=dict(call.arguments),
                input_responses=_responses(call.answers),
                request_state=call.state,
                _meta=meta,
            )
            said = await session.send_request(
                mcp_types.CallToolRequest(params=params),
                CALLED,
                progress_callback=_heard(on_progress) if on_progress else None,
            )
            return answer_of(said)

        return await self._sent(target, call.timeout_s, send)

    async def poll(self, target: Target, handle: str, limit_bytes: int, timeout_s: float) -> Answer:
        """How far a task is. Raises `NotSent` where it can not be asked now."""

        async def ask(session: ClientSession, exchange: Exchange) -> Answer:
            exchange.arm({}, limit_bytes)
            request = TaskGet(params=TaskParams(task_id=handle))
            task = await session.send_request(request, Anything)
            return task_answer(task.model_dump(), handle)

        try:
            return await self._sent(target, timeout_s, ask)
        except InDoubt as error:
            raise NotSent(str(error)) from error  # asking again does nothing

    async def update(self, target: Target, handle: str, answers: Mapping[str, Any]) -> None:
        """Give a task what it asked its user for. Raises `NotSent`."""
        params = TaskUpdateParams(task_id=handle, input_responses=dict(answers))
        await self._tell(target, TaskUpdate(params=params))

    async def cancel(self, target: Target, handle: str) -> None:
        """Ask that a task be cancelled, which is a wish. Raises `NotSent`."""
        await self._tell(target, TaskCancel(params=TaskParams(task_id=handle)))

    async def _tell(self, target: Target, request: mcp_types.Request[Any, Any]) -> None:
        async def tell(session: ClientSession, exchange: Exchange) -> Answer:
            exchange.arm({}, LIST_BYTES)
            await session.send_request(request, Anything)
            return Result()

        try:
            await self._sent(target, 10.0, tell)
        except (InDoubt, Refused) as error:
            raise NotSent(str(error)) from error

    async def _sent(
        self,
        target: Target,
        timeout_s: float,
        send: Callable[[ClientSession, Exchange], Awaitable[Answer]],
    ) -> Answer:
        """What `send` gave, or what its failure means."""
        exchange = _exchange(target, LIST_BYTES)
        answer: Answer | None = None
        try:
            async with (
                asyncio.timeout(timeout_s) as limit,
                self._sessions.open(target, exchange) as session,
            ):
                answer = await send(session, exchange)
                limit.reschedule(asyncio.get_running_loop().time() + _CLOSE_S)
        except Exception as error:  # as above; a cancellation of ours passes
            if answer is None:
                answer = self._meaning(_first(error), target, exchange)
        finally:
            await exchange.aclose()
        assert answer is not None  # noqa: S101
        return answer

    def _meaning(self, error: BaseException, target: Target, exchange: Exchange) -> Answer:
        """What the failure of a call says: an answer, or one of the three exceptions."""
        if isinstance(error, NotSent | Refused | InDoubt):
            raise error
        if exchange.began and exchange.is_cut:  # of a stream the SDK says only that it was closed
            return Result(cut=tuple(exchange.kept))
        if isinstance(error, TargetRefused) and not exchange.began:
            raise Refused("address_refused", str(error)) from None
        if isinstance(error, MCPError) and error.code == UNSUPPORTED_PROTOCOL_VERSION:
            self._sessions.forget(target)
            raise NotSent("the server speaks another version by now") from None
        if exchange.status == TOO_MANY:
            raise NotSent("the server asks to come later") from None
        if not exchange.began:
            raise NotSent(f"the server can not be reached: {type(error).__name__}") from None
        if (answer := _answered(error, exchange.status)) is not None:
            return answer
        raise InDoubt(f"no answer to the call: {type(error).__name__}") from None

    async def _check_pin(
        self, session: ClientSession, target: Target, call: Outgoing
    ) -> _Known | None:
        """The tool as it is listed now. Raises `Refused` where its definition is not the pinned one any more."""
        if not call.digest:
            return None
        name, now_s = _cache_name(target), self._clock.monotonic_s()
        until_s, listed = self._lists.get(name, (0.0, {}))
        if until_s <= now_s:
            await self._list(session, target)
            listed = self._lists[name][1]
        known = listed.get(call.tool)
        if known is None or known.digest != call.digest:
            raise Refused(TOOL_CHANGED, "the tool's definition is not the one that was listed")
        if call.list_digest:
            now = digest_of_pairs((name, each.digest) for name, each in listed.items())
            if now != call.list_digest:
                raise Refused(TOOL_CHANGED, "the server's list is not the one that was listed")
        return known

    async def _list(self, session: ClientSession, target: Target) -> Listed:
        """The server's list, without credentials that the server repeats."""
        tools: list[Mapping[str, Any]] = []
        cursor: str | None = None
        ttl_ms = 0
        for _ in range(MOST_PAGES):
            page = await session.list_tools(
                params=mcp_types.PaginatedRequestParams(cursor=cursor) if cursor else None
            )
            tools += [target.masked(definition(tool)) for tool in page.tools]
            ttl_ms, cursor = page.ttl_ms or 0, page.next_cursor
            if len(tools) > MOST_LISTED:
                raise Refused("too_many_tools", f"the server lists more than {MOST_LISTED} tools")
            if not cursor:
                break
        else:
            raise Refused("too_many_tools", f"the list has more than {MOST_PAGES} pages")
        names = [tool["name"] for tool in tools]
        if len(set(names)) < len(names):
            raise Refused("invalid_list", "the server lists a tool twice")
        until_s = self._clock.monotonic_s() + min(ttl_ms / 1000, _LONGEST_TTL_S)
        trim(self._lists)
        self._lists[_cache_name(target)] = (until_s, {tool["name"]: _known(tool) for tool in tools})
        return Listed(tuple(tools))


def _heard(on_progress: OnProgress) -> ProgressFnT:
    async def hear(progress: float, total: float | None, message: str | None) -> None:
        on_progress(progress, total, message)

    return hear


def _known(tool: Mapping[str, Any]) -> _Known:
    return _Known(definition_digest(tool), x_mcp_header_map(tool.get("inputSchema")))


def _responses(answers: Mapping[str, Any] | None) -> mcp_types.InputResponses | None:
    """What a person said, by the server's keys."""
    if answers is None:
        return None
    return {key: mcp_types.ElicitResult.model_validate(each) for key, each in answers.items()}


def _exchange(target: Target, limit_bytes: int) -> Exchange:
    return Exchange(
        origin=target.origin,
        allowed=target.allowed,
        headers=target.headers,
        limit_bytes=limit_bytes,
    )


def _answered(error: BaseException, status: int) -> Answer | None:
    """What the server said where the call failed after it left; None where it said nothing that counts."""
    match error:
        case Redirected():
            return error_result("The tool server redirects, which is not followed.")
        case MCPError(code=code, message=message) if (
            code not in _NO_ANSWER and status < _SERVER_ERROR
        ):
            return error_result(f"The tool server refused the call: {message:.1000}")
        case httpx2.DecodingError() | ValidationError() | RuntimeError():
            return error_result("The tool answered in a form that can not be read.")
        case _:
            return None


def _of_list(error: BaseException, target: Target) -> Exception:
    """What the failure of a list means: nothing was carried out, whatever it is."""
    match error:
        case NotSent() | Refused():
            return error
        case TargetRefused() | Redirected():
            return Refused("address_refused", str(error))
        case TooLong():
            return Refused("too_many_tools", f"the list is over {LIST_BYTES} bytes")
        case MCPError(message=message):
            return NotSent(f"the server does not list its tools: {target.masked(message):.200}")
        case _:
            return NotSent(f"the server does not list its tools: {type(error).__name__}")


def _first(error: BaseException) -> BaseException:
    """The error in a group of them: what is ours first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    found = [_first(each) for each in error.exceptions]
    ours = (NotSent, Refused, InDoubt, TargetRefused, Redirected, TooLong, MCPError)
    return next((each for each in found if isinstance(each, ours)), found[0])


def _cache_name(target: Target) -> str:
    """A server as one caller sees it: another credential may see other tools."""
    return definition_digest({"url": target.url, "headers": dict(target.headers)})
