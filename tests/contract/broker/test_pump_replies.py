"""Routing of events, and of the events that subscribers reply with."""

import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest
from aiohttp import web
from redis.asyncio import Redis

from eventing.broker.delivery import subscriber as post
from eventing.cloudevent.event import Event, build_binary, build_structured
from eventing.cloudevent.job_event import REQUESTED, request_event
from eventing.cloudevent.result_event import COMPLETED, result_event
from eventing.job.job import Job, JobState, new_job_id
from tests.contract.broker.stack import (
    EVENT,
    Answer,
    Subscriber,
    build,
    pumping,
    says,
    trigger,
    until,
)
from tests.contract.rig import new_job


def replies(event: Event, status: int = 200, *, in_structured_mode: bool = False) -> Answer:
    async def answer(_: web.Request, __: int) -> web.Response:
        headers, body = (build_structured if in_structured_mode else build_binary)(event)
        return web.Response(status=status, headers=headers, body=body)

    return answer


@pytest.mark.parametrize(
    ("filters", "prefer"),
    [
        (({"exact": {"type": REQUESTED}},), "return=minimal"),
        (({"exact": {"type": COMPLETED}},), "reply"),
        (({"prefix": {"type": "dev.torpor."}},), "reply"),
        ((), "reply"),
    ],
)
async def test_a_result_event_is_asked_for_when_a_trigger_may_take_it(
    redis: Redis, filters: tuple[dict[str, dict[str, str]], ...], prefer: str
) -> None:
    async with Subscriber().serving() as subscriber:
        requests = trigger(subscriber.url)
        results = replace(trigger(subscriber.url), name="another", filters=filters)
        request_only = replace(requests, filters=({"exact": {"type": REQUESTED}},))
        stack, _ = build(redis, request_only, results)
        async with pumping(stack):
            await stack.send(replace(EVENT, type=REQUESTED))
            await until(stack.is_drained)

    assert subscriber.headers[0]["prefer"] == prefer


class TestReplies:
    REPLY = Event(id="r", source="/r", type="answer", datacontenttype="text/plain", data=b"because")

    @pytest.mark.parametrize("in_structured_mode", [False, True], ids=["binary", "structured"])
    async def test_an_event_in_a_200_is_routed(
        self, redis: Redis, in_structured_mode: bool
    ) -> None:
        first = replies(self.REPLY, in_structured_mode=in_structured_mode)
        async with Subscriber([first, says(204)]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                await stack.send(EVENT)
                await until(stack.is_drained)

        assert subscriber.got == [EVENT, self.REPLY]

    @pytest.mark.parametrize("status", [201, 202, 204])
    async def test_an_event_in_another_2xx_is_not_routed(self, redis: Redis, status: int) -> None:
        async with Subscriber([replies(self.REPLY, status), says(204)]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                await stack.send(EVENT)
                await until(stack.is_drained)

        assert subscriber.got == [EVENT]

    @pytest.mark.parametrize("size", [70_000, 1_000_000, 5_000_000])
    async def test_a_long_reply_is_routed_whole(self, redis: Redis, size: int) -> None:
        # Reading «up to n bytes» gives what has come so far, which is the first 64 KiB or less.
        body = bytes(n % 251 for n in range(size))
        reply = Event(id="r", source="/r", type="answer", datacontenttype="x/y", data=body)

        async def in_pieces(request: web.Request, _: int) -> web.StreamResponse:
            headers, whole = build_binary(reply)
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            for start in range(0, len(whole), 60_000):
                await response.write(whole[start : start + 60_000])
                await asyncio.sleep(0)
            return response

        async with Subscriber([in_pieces, says(204)]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                await stack.send(EVENT)
                await until(stack.is_drained)

        assert len(subscriber.got) == 2
        assert subscriber.got[1].data == body

    @pytest.mark.parametrize(
        "headers",
        [
            {"ce-specversion": "1.0", "ce-id": "r"},
            {"ce-specversion": "2.0", "ce-id": "r", "ce-source": "/r", "ce-type": "a"},
            {"ce-id": "r"},
            {"content-type": "application/cloudevents+json"},
            {"content-type": "application/cloudevents-batch+json"},
        ],
        ids=str,
    )
    async def test_a_malformed_reply_is_no_success_and_is_asked_for_again(
        self, redis: Redis, headers: dict[str, str]
    ) -> None:
        async def malformed(_: web.Request, __: int) -> web.Response:
            return web.Response(headers=headers, body=b"{no")

        async with Subscriber([malformed, replies(self.REPLY), says(204)]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                await stack.send(EVENT)
                await until(stack.is_drained)

        assert subscriber.got == [EVENT, EVENT, self.REPLY]

    async def test_an_event_without_data_is_delivered_without_a_content_type(
        self, redis: Redis
    ) -> None:
        async with Subscriber().serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                await stack.send(Event(id="1", source="/s", type="t"))
                await until(stack.is_drained)

        assert subscriber.got[0].datacontenttype == ""
        assert "content-type" not in subscriber.headers[0]

    async def test_a_body_that_is_no_event_is_no_reply(self, redis: Redis) -> None:
        async def text(_: web.Request, __: int) -> web.Response:
            return web.Response(text="thanks")

        async with Subscriber([text]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                await stack.send(EVENT)
                await until(stack.is_drained)

        assert subscriber.got == [EVENT]

    async def test_an_echo_does_not_run_in_circles(self, redis: Redis) -> None:
        async with Subscriber([replies(EVENT)]).serving() as subscriber:
            (stack,) = build(redis, trigger(subscriber.url))
            async with pumping(stack):
                await stack.send(EVENT)
                await until(stack.is_drained)

        assert subscriber.got == [EVENT]


class TestRouting:
    async def test_an_event_goes_to_every_trigger_that_wants_it(self, redis: Redis) -> None:
        async with Subscriber().serving() as one, Subscriber().serving() as two:
            wants_all = trigger(one.url)
            wants_results = replace(
                trigger(two.url), name="results", filters=({"exact": {"type": COMPLETED}},)
            )
            stacks = build(redis, wants_all, wants_results)
            ended = Job(
                id=new_job_id(),
                state=JobState.COMPLETED,
                request=new_job().request,
                finished_ms=1_800_000_000_000,
            )
            async with pumping(*stacks):
                assert await stacks[0].send(request_event(ended)) == 1
                assert await stacks[0].send(result_event(ended)) == 2
                await until(stacks[0].is_drained)
                await until(stacks[1].is_drained)

        assert [e.type for e in two.got] == [COMPLETED]
        assert {e.type for e in one.got} == {REQUESTED, COMPLETED}


async def test_an_endless_reply_is_read_to_the_limit_and_no_further(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post, "_REPLY_LIMIT_BYTES", 64 * 1024)
    sent, enough = [0], 64 * 1024 * 1024

    async def endless(request: web.Request, _: int) -> web.StreamResponse:
        headers, _body = build_binary(EVENT)
        answer = web.StreamResponse(status=200, headers=headers)
        await answer.prepare(request)
        with suppress(ConnectionError):
            while sent[0] < enough:
                await answer.write(b"x" * 65_536)
                sent[0] += 65_536
        return answer

    async with Subscriber(answers=[endless, says(204)]).serving() as subscriber:
        (stack,) = build(redis, trigger(subscriber.url))
        async with pumping(stack):
            await stack.send(EVENT)
            await until(stack.is_drained)

    assert sent[0] < enough
