"""Requests to an MCP server without sessions (specification of 2026): each is one POST, and its answer comes on it.

Called by `steps.tools.client.mcp_session` for servers that are known to speak so, and imported with it only. The SDK's
own way to them is that of session servers: two tasks and four streams a session, a third of what a call took.
"""

import secrets
from collections.abc import Mapping
from contextlib import aclosing, suppress
from typing import Any, Final

import anyio
import anyio.abc
import httpx2
import orjson
from mcp.shared.dispatcher import CallOptions, OnNotify, OnNotifyIntercept, OnRequest
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CONNECTION_CLOSED,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    JSONRPCError,
    JSONRPCNotification,
    JSONRPCResponse,
    ProgressNotificationParams,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError

from steps.tools.client.dialler import Exchange

REQUEST_IDS: Final = 2**53
"""Request ids are random below this: the same call sent again is another request."""
_ACCEPT: Final = {
    "accept": "application/json, text/event-stream",
    "content-type": "application/json",
}
_STATUS_CODES: Final = {202: INVALID_REQUEST, 404: METHOD_NOT_FOUND}
"""What an answer without an error of the protocol means, as the SDK has it; others are `INTERNAL_ERROR`."""


class StatelessDispatcher:
    """A `Dispatcher` of the SDK. The exchange belongs to the caller; a request that is given up closes its
    connection, which is how this era cancels.
    """

    def __init__(self, url: str, exchange: Exchange) -> None:
        self._url = url
        self._exchange = exchange

    async def run(
        self,
        on_request: OnRequest,
        on_notify: OnNotify,
        on_notify_intercept: OnNotifyIntercept | None = None,
        *,
        task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Nothing comes but on the answers to requests."""
        task_status.started()

    async def notify(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> None:
        """A client has nothing to tell in this era."""

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        """The result. Raises `MCPError` for an error of the server's, and what the exchange raises."""
        options, number = opts or {}, secrets.randbelow(REQUEST_IDS)
        said = dict(params or {})
        if "on_progress" in options:
            said["_meta"] = {**said.get("_meta", {}), "progressToken": number}
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": said}
        headers = _ACCEPT | options.get("headers", {})
        response = await self._exchange.post(self._url, headers, orjson.dumps(message))
        async with aclosing(response):
            kind = response.headers.get("content-type", "").lower()
            if response.status_code >= 400 or response.status_code == 202:
                raise await _refusal(response, kind)
            if kind.startswith("application/json"):
                found = _read(await response.aread())
            elif kind.startswith("text/event-stream"):
                found = await _streamed(response, number, options)
            else:
                raise MCPError(INVALID_REQUEST, f"Unexpected content type: {kind:.100}")
        if isinstance(found, JSONRPCError):
            raise MCPError.from_error_data(found.error)
        if not isinstance(found, JSONRPCResponse):
            raise MCPError(PARSE_ERROR, "The answer is no response")
        return found.result


async def _refusal(response: httpx2.Response, kind: str) -> MCPError:
    """The error in an answer of 400 and above; where there is none, one that stands for its status."""
    if kind.startswith("application/json"):
        found = None
        with suppress(ValidationError):
            found = jsonrpc_message_adapter.validate_json(await response.aread(), by_name=False)
        if isinstance(found, JSONRPCError):
            return MCPError.from_error_data(found.error)
    status = response.status_code
    return MCPError(_STATUS_CODES.get(status, INTERNAL_ERROR), f"The server answered {status}")


async def _streamed(response: httpx2.Response, number: int, options: CallOptions) -> Any:
    """The response in a stream of events; those before it say how far the request is."""
    async for event in httpx2.EventSource(response, max_event_size=None):
        if event.event != "message" or not event.data:
            continue
        found = _read(event.data)
        if isinstance(found, JSONRPCResponse | JSONRPCError):
            return found
        if isinstance(found, JSONRPCNotification) and found.method == "notifications/progress":
            await _progressed(found.params or {}, number, options)
    raise MCPError(CONNECTION_CLOSED, "The stream ended without a response")


async def _progressed(said: Mapping[str, Any], number: int, options: CallOptions) -> None:
    hear = options.get("on_progress")
    if hear is None or said.get("progressToken") != number:
        return
    with suppress(ValidationError):
        heard = ProgressNotificationParams.model_validate(said, by_name=False)
        await hear(heard.progress, heard.total, heard.message)


def _read(text: bytes | str) -> Any:
    """The message in a text. Raises `MCPError`."""
    try:
        return jsonrpc_message_adapter.validate_json(text, by_name=False)
    except ValidationError as error:
        raise MCPError(PARSE_ERROR, "The answer can not be read") from error
