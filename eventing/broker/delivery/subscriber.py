"""One POST of an event to a trigger's subscriber, and the event that it may reply with.

Called by the pump.
"""

from collections.abc import Mapping
from typing import Final

import aiohttp
import structlog

from eventing.broker.delivery.decision import SubscriberResponse, retry_after_s
from eventing.broker.trigger import Trigger
from eventing.clock import SystemClock
from eventing.cloudevent.event import Event, build_binary, parse_http
from eventing.cloudevent.publisher import payload
from eventing.errors import NotACloudEvent, UnsupportedMode

_log = structlog.get_logger()
_REPLY_LIMIT_BYTES: Final = 8 * 1024 * 1024
_ERROR_BODY_BYTES: Final = 1024
"""Length of a subscriber's error body kept for `knativeerrordata`; Knative's limit."""
_MALFORMED_REPLY: Final = 502
_UNREACHED: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""No connection could be made, so the event cannot have arrived."""


async def post_event(
    session: aiohttp.ClientSession, trigger: Trigger, event: Event, extra_headers: Mapping[str, str]
) -> tuple[SubscriberResponse, Event | None]:
    """The answer, and the event in it; no answer, a refused connection and a timeout are all status 0."""
    headers, body = build_binary(event)
    try:
        async with session.post(
            trigger.subscriber,
            data=payload(body),
            headers=headers | dict(extra_headers),
            allow_redirects=False,
            skip_auto_headers=("content-type",),  # an event without data has none
        ) as response:
            return await _answer_of(response)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        _log.info("no answer", action="deliver", trigger=trigger.name, reason=type(error).__name__)
        return SubscriberResponse(status=0, is_unreached=isinstance(error, _UNREACHED)), None
    except ValueError as error:  # a header of ours: those of an event can always be sent
        _log.error("cannot be sent", action="deliver", reason=str(error)[:80])
        return SubscriberResponse(status=0, is_unreached=True), None


async def _answer_of(response: aiohttp.ClientResponse) -> tuple[SubscriberResponse, Event | None]:
    """The subscriber's answer and the event in it. A reply that claims to be an event but is malformed counts as a
    failed delivery and is retried, as in Knative.
    """
    content = await _whole(response)
    try:
        reply = _reply(response, content)
    except (NotACloudEvent, UnsupportedMode) as error:
        _log.warning("malformed reply", action="deliver", reason=error.message)
        return SubscriberResponse(
            status=_MALFORMED_REPLY, body=(content or b"")[:_ERROR_BODY_BYTES]
        ), None
    now_s = SystemClock().wall_ms() / 1000
    asked_s = retry_after_s(response.headers.get("retry-after", ""), now_s)
    body = b"" if response.ok else (content or b"")[:_ERROR_BODY_BYTES]
    return SubscriberResponse(status=response.status, retry_after_s=asked_s, body=body), reply


async def _whole(response: aiohttp.ClientResponse) -> bytes | None:
    """The whole body; None when it is over the limit."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _REPLY_LIMIT_BYTES:
            return None
    return bytes(body)


def _reply(response: aiohttp.ClientResponse, content: bytes | None) -> Event | None:
    """The event in a 200 answer, if there is one (by the data-plane specification a 202 body is not a reply).
    Raises `NotACloudEvent` for a malformed event.
    """
    # As servers hand headers on: `parse_http` tells raw UTF-8 from what is not.
    headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in response.raw_headers}
    kind = headers.get("content-type", "").lower()
    is_event = kind.startswith("application/cloudevents") or "ce-specversion" in headers
    if response.status != 200 or not (is_event or "ce-id" in headers):
        return None
    if content is None:
        raise NotACloudEvent(f"the reply is over {_REPLY_LIMIT_BYTES} bytes", "body")
    return parse_http(headers, content)
