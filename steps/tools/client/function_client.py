"""The client of tools that are CloudEvents functions: a call is the event `tool.called`, its result the event in the
answer.

A function that answers 202 answers later, with the call's token, to the api. Data over what an event should carry goes
by reference: the function names an address, its digest and its size, and the address is dialled as any other.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any, Final

import httpx2
import orjson
from yarl import URL

from eventing.cloudevent.event import Event, build_binary, parse_http
from eventing.cloudevent.tool_event import ACCEPTED, CALL_CANCELLED, RETURNED, SOURCE
from eventing.errors import BadRequest, InvalidJob
from eventing.job.tools.sealed import origin_of
from eventing.process.egress import AllowList
from steps.tools.client.answer import (
    Answer,
    InDoubt,
    Later,
    NotSent,
    Outgoing,
    Refused,
    Result,
    Target,
    error_result,
)
from steps.tools.client.dialler import Exchange, Redirected, TargetRefused, TooLong

TOKEN: Final = "calltoken"  # noqa: S105 (the name of the extension)
"""The extension with the single-use token that a later result must carry."""
_SAID_BYTES: Final = 2048
_TOO_MANY: Final = 429


class FunctionClient:
    """The client of CloudEvents functions."""

    async def call(self, target: Target, event: Event, call: Outgoing, limit_bytes: int) -> Answer:
        """Send the call. Raises `NotSent`, `Refused` and `InDoubt`."""
        exchange = Exchange(
            origin=target.origin,
            allowed=target.allowed,
            headers=target.headers,
            limit_bytes=limit_bytes,
        )
        exchange.arm({"idempotency-key": call.key}, limit_bytes)
        try:
            async with asyncio.timeout(call.timeout_s):
                headers, body = build_binary(event)
                response = await exchange.post(target.url, headers, body)
                async with aclosing(response):
                    await response.aread()
        except TooLong as error:
            return Result(cut=tuple(error.kept))
        except Redirected as error:
            return error_result(f"The tool redirects: {error}")
        except TargetRefused as error:
            raise Refused("address_refused", str(error)) from error
        except (httpx2.HTTPError, TimeoutError, OSError) as error:
            if exchange.began:
                raise InDoubt(f"no answer to the call: {type(error).__name__}") from error
            raise NotSent(f"the tool can not be reached: {type(error).__name__}") from error
        finally:
            await exchange.aclose()
        return await self._answer(target, response, call, limit_bytes)

    async def cancel(self, target: Target, event: Event) -> None:
        """Tell the function that the call is not wanted any more; whether it heard is not known."""
        exchange = Exchange(
            origin=target.origin,
            allowed=target.allowed,
            headers=target.headers,
            limit_bytes=_SAID_BYTES,
        )
        cancelled = Event(
            id=f"{event.id}:cancelled",
            source=SOURCE,
            type=CALL_CANCELLED,
            subject=event.subject,
            extensions=event.extensions,
        )
        try:
            async with asyncio.timeout(5.0):
                headers, body = build_binary(cancelled)
                await (await exchange.post(target.url, headers, body)).aclose()
        except (httpx2.HTTPError, TimeoutError, OSError):
            return
        finally:
            await exchange.aclose()

    async def _answer(
        self, target: Target, response: httpx2.Response, call: Outgoing, limit_bytes: int
    ) -> Answer:
        status, body = response.status_code, response.content
        if status == _TOO_MANY:
            raise NotSent("the tool asks to come later")
        if status >= 500:
            raise InDoubt(f"the tool answered {status}")
        if status >= 400:
            said = body[:_SAID_BYTES].decode("utf-8", "replace")
            return error_result(f"The tool refused the call with {status}. {said}".strip())
        if "ce-type" not in response.headers:
            if status == 202:
                return Later(handle=call.key)
            return _plain(body, response.headers.get("content-type", ""))
        try:
            event = parse_http(response.headers, body)
        except BadRequest as error:
            return error_result(f"The tool answered with no readable event: {error.message}")
        if event.type == ACCEPTED or (status == 202 and event.type != RETURNED):
            return Later(handle=_handle(event, call))
        if event.type != RETURNED:
            return error_result(f"The tool answered with an event of type {event.type:.100}.")
        if event.extensions.get("dataref"):
            return await self._referred(target, event, call, limit_bytes)
        return result_of(event.data)

    async def _referred(
        self, target: Target, event: Event, call: Outgoing, limit_bytes: int
    ) -> Answer:
        """The result at the address that the event names. It gets no credential, only the function's own host may be
        inside, and what is read is what the function knew: its digest.
        """
        url = event.extensions["dataref"]
        own = target.allowed if URL(url).host == URL(target.url).host else AllowList()
        try:
            origin = origin_of(url)
        except ValueError:
            return error_result("The tool named its result by an address that is none.")
        exchange = Exchange(origin=origin, allowed=own, headers={}, limit_bytes=limit_bytes)
        try:
            async with asyncio.timeout(call.timeout_s), _client(exchange) as client:
                response = await client.get(url)
                data = response.content if response.status_code == 200 else None
        except TooLong as error:
            return Result(cut=tuple(error.kept))
        except (TargetRefused, InvalidJob) as error:
            return error_result(f"The tool named its result by an address that is refused: {error}")
        except (httpx2.HTTPError, TimeoutError, OSError):
            data = None
        finally:
            await exchange.aclose()
        if data is None:
            return error_result("The tool named its result by an address that can not be read.")
        digest = event.extensions.get("datasha256", "")
        if hashlib.sha256(data).hexdigest() != digest.lower():
            return error_result("The tool's result is not the one that it named.")
        return result_of(data)


def _client(exchange: Exchange) -> httpx2.AsyncClient:
    timeout = httpx2.Timeout(None, connect=10.0)
    return httpx2.AsyncClient(transport=exchange, timeout=timeout, trust_env=False)


def _handle(event: Event, call: Outgoing) -> str:
    try:
        data = orjson.loads(event.data or b"{}")
    except orjson.JSONDecodeError:
        return call.key
    handle = data.get("handle") if isinstance(data, Mapping) else None
    return handle[:256] if isinstance(handle, str) and handle else call.key


def result_of(data: bytes) -> Result:
    """A result in MCP's shape; what has another is a text."""
    try:
        said: Any = orjson.loads(data or b"{}")
    except orjson.JSONDecodeError:
        return Result(content=({"type": "text", "text": data.decode("utf-8", "replace")},))
    if not isinstance(said, Mapping) or not ({"content", "structuredContent"} & said.keys()):
        return Result(content=({"type": "text", "text": orjson.dumps(said).decode()},))
    content = said.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    blocks = (
        [each for each in content if isinstance(each, Mapping)] if isinstance(content, list) else []
    )
    return Result(
        content=blocks,
        structured=said.get("structuredContent"),
        is_error=said.get("isError") is True,
    )


def _plain(body: bytes, content_type: str) -> Result:
    """A result without an event: JSON, or a text."""
    if "json" in content_type:
        return result_of(body)
    text = body.decode("utf-8", "replace")
    return Result(content=({"type": "text", "text": text},) if text else ())
