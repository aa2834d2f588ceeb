"""A receiver that is away for an hour, or that cuts connections: the tries go on by the schedule,
on real sockets, with the clock scaled (F27).
"""

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from api.webhook.schedule import JITTER, SCHEDULE_S, TryVerdict
from api.webhook.store import WebhookStore
from api.webhook.webhook import WebhookDelivery
from tests.integration.api.receiver import receiving
from tests.integration.api.test_webhook_sender import add, message, sending, settings, settled, tell

SCALE = 3600
"""An hour of the schedule is a second here."""
SCALED = tuple(pause / SCALE for pause in SCHEDULE_S)
MOST_LATE_MS = 2_000
"""The sender looks four times a second for what is due; a busy machine is late more."""
OK = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"
NO_LINGER = struct.pack("ii", 1, 0)
"""Closing sends a reset, as a process that was killed does."""


@pytest.fixture
def webhooks(redis: Redis) -> WebhookStore:
    return WebhookStore(redis)


@asynccontextmanager
async def cutting(
    is_cut: Callable[[int], bool], after: bytes
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A receiver that resets the connections that `is_cut` names, having answered `after`; what it
    was sent, request by request.
    """
    sent: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        sent.append(head)
        if is_cut(len(sent)):
            writer.write(after)
            await writer.drain()
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            writer.transport.abort()
        else:
            writer.write(OK)
            await writer.drain()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/hook", sent
    finally:
        server.close()
        await server.wait_closed()


def ids_of(sent: list[bytes]) -> set[bytes]:
    return {line for head in sent for line in head.split(b"\r\n") if line.startswith(b"webhook-id")}


async def told(
    webhooks: WebhookStore, subject: str, is_far_enough: Callable[[WebhookDelivery], bool]
) -> WebhookDelivery:
    """The first endpoint's delivery about `subject`, once it is so far."""
    async with asyncio.timeout(60):
        while True:
            (one,) = [d for d in await webhooks.of("t", subject) if d.endpoint == "we_1"]
            if is_far_enough(one):
                return one
            await asyncio.sleep(0.02)


@asynccontextmanager
async def longest_pause() -> AsyncIterator[list[float]]:
    """The longest time that this process stood still for, while the block runs, in seconds."""
    longest = [0.0]

    async def look() -> None:
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(0.01)
            longest[0] = max(longest[0], time.monotonic() - before_s)

    looking = asyncio.create_task(look())
    try:
        yield longest
    finally:
        looking.cancel()


async def test_a_receiver_that_is_down_for_an_hour_gets_its_webhook_when_it_is_back(
    webhooks: WebhookStore,
) -> None:
    with socket.socket() as sock:  # ours, and refused as long as nobody listens
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        await add(webhooks, f"http://127.0.0.1:{port}/hook")
        async with (
            longest_pause() as stood_still,
            sending(webhooks, settings(schedule_s=SCALED)),
            receiving() as other,
        ):
            await tell(webhooks, message(1))
            await add(webhooks, other.url, "we_2")
            await tell(webhooks, message(2))
            await other.wait_for(1)
            await asyncio.sleep(3600 / SCALE)
            await told(webhooks, "job_1", lambda one: one.tries >= 4)
            async with receiving(port) as back:
                late, _ = [
                    await told(webhooks, job, lambda one: one.state.is_settled)
                    for job in ("job_1", "job_2")
                ]

    *failed, last = late.log
    assert (late.state, last.status) == (TryVerdict.DELIVERED, 204)
    assert [entry.status for entry in failed] == [0] * len(failed)
    for entry, planned_s, after in zip(failed, SCALED[1:], late.log[1:], strict=False):
        pause_s = (entry.next_ms - entry.at_ms - entry.duration_ms) / 1000
        assert planned_s * (1 - JITTER) - 0.001 <= pause_s <= planned_s * (1 + JITTER)
        assert -10 <= after.at_ms - entry.next_ms <= MOST_LATE_MS + stood_still[0] * 1000
    assert len(back.sent) == 2


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(b"", id="before an answer"),
        pytest.param(b"HTTP/1.1 20", id="in the status line"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-le", id="in the headers"),
    ],
)
async def test_a_connection_that_is_reset_is_tried_again_under_the_same_id(
    webhooks: WebhookStore, after: bytes
) -> None:
    async with cutting(lambda number: number < 3, after) as (url, sent):
        await add(webhooks, url)
        await tell(webhooks, message())
        async with sending(webhooks, settings(schedule_s=(0.0, 0.05, 0.05))):
            delivery = await settled(webhooks)

    assert (delivery.state, delivery.tries) == (TryVerdict.DELIVERED, 3)
    assert [entry.status for entry in delivery.log] == [0, 0, 204]
    assert len(ids_of(sent)) == 1


async def test_an_answer_whose_body_is_cut_has_been_given(webhooks: WebhookStore) -> None:
    async with cutting(lambda _: True, b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf") as (
        url,
        sent,
    ):
        await add(webhooks, url)
        await tell(webhooks, message())
        async with sending(webhooks, settings()):
            delivery = await settled(webhooks)

    assert (delivery.state, len(sent)) == (TryVerdict.DELIVERED, 1)
