"""Deliveries on a real store to real sockets: schedule, fences, lanes and addresses (F27, F28)."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from redis.asyncio import Redis
from standardwebhooks import Webhook

from api.webhook.listener import WebhookListener
from api.webhook.schedule import TryVerdict
from api.webhook.sender import SenderSettings, WebhookSender
from api.webhook.store import WebhookStore
from api.webhook.webhook import (
    PER_JOB,
    Endpoint,
    EventType,
    Message,
    Secret,
    WebhookDelivery,
    new_secret,
)
from eventing.process.egress import AllowList
from tests.awake import awake_s
from tests.integration.api.receiver import Receiver, receiving
from tests.time_limits import HANG_S
from tests.unit.eventing.test_egress import INSIDE

LOOPBACK = AllowList.parse(["127.0.0.0/8"])
QUICK = (0.0, 0.2, 0.2, 0.2)


@pytest.fixture
def webhooks(redis: Redis) -> WebhookStore:
    return WebhookStore(redis)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


def settings(**fields: Any) -> SenderSettings:
    return SenderSettings(**{"timeout_s": 1.0, "schedule_s": QUICK, "allowed": LOOPBACK} | fields)


@asynccontextmanager
async def sending(
    store: WebhookStore, how: SenderSettings, resolver: AbstractResolver | None = None
) -> AsyncIterator[WebhookSender]:
    sender = WebhookSender(store, how, resolver=resolver)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(sender.run())
        yield sender
        running.cancel()


def message(number: int = 1, **fields: Any) -> Message:
    defaults = {"tenant": "t", "type": EventType.RESPONSE_COMPLETED, "created_s": 1_764_000_000}
    return Message(**defaults | {"subject": f"job_{number}", "key": f"job_{number}:1"} | fields)


async def tell(store: WebhookStore, *messages: Message) -> None:
    listener = WebhookListener(store, lambda: None)
    for each in messages:
        await listener.notify(each)


async def add(store: WebhookStore, url: str, endpoint_id: str = "we_1") -> Endpoint:
    endpoint = Endpoint(
        id=endpoint_id,
        tenant="t",
        url=url,
        event_types=tuple(EventType),
        secrets=(Secret(text=new_secret()),),
        created_s=1,
    )
    await store.add(endpoint)
    return endpoint


async def settled(store: WebhookStore, timeout_s: float = HANG_S) -> WebhookDelivery:
    """The newest delivery of the tenant, once it is settled."""
    async with asyncio.timeout(timeout_s):
        while True:
            (delivery, *_) = await store.log("t", 1)
            if delivery.state.is_settled:
                return delivery
            await asyncio.sleep(0.02)


async def test_ends_that_are_told_together_read_the_endpoints_once(
    webhooks: WebhookStore, redis: Redis
) -> None:
    listener = WebhookListener(webhooks, lambda: None)
    await listener.notify(message(0))
    await add(webhooks, "http://127.0.0.1:9/")
    await redis.config_resetstat()

    await asyncio.gather(*(listener.notify(message(number)) for number in range(1, 21)))

    stats = await redis.info("commandstats")
    assert stats["cmdstat_hgetall"]["calls"] == 1
    assert len(await webhooks.log("t", 100)) == 20


async def test_an_ending_arrives_signed(webhooks: WebhookStore, receiver: Receiver) -> None:
    endpoint = await add(webhooks, receiver.url)
    await tell(webhooks, message())

    async with sending(webhooks, settings()):
        (sent,) = await receiver.wait_for(1)
        delivery = await settled(webhooks)

    event = Webhook(endpoint.secrets[0].text).verify(sent.body, sent.headers)
    assert event["data"] == {"id": "job_1"}
    assert sent.headers["webhook-id"] == delivery.id
    assert (delivery.state, delivery.tries) == (TryVerdict.DELIVERED, 1)


async def test_a_repeated_end_sends_one_webhook(webhooks: WebhookStore, receiver: Receiver) -> None:
    await add(webhooks, receiver.url)

    async with sending(webhooks, settings()):
        await tell(webhooks, message(), message())
        await settled(webhooks)
        await tell(webhooks, message())
        await asyncio.sleep(0.6)

    assert len(receiver.sent) == 1


async def test_a_failing_receiver_is_asked_by_the_schedule_with_one_id(
    webhooks: WebhookStore, receiver: Receiver
) -> None:
    receiver.answer = lambda n: web.Response(status=500 if n < 4 else 200)
    await add(webhooks, receiver.url)
    await tell(webhooks, message())

    async with sending(webhooks, settings(schedule_s=(0.0, 0.5, 0.5, 0.5))):
        sent = await receiver.wait_for(4)
        delivery = await settled(webhooks)

    gaps = [b.at_s - a.at_s for a, b in pairwise(sent)]
    awake = [b.at_awake_s - a.at_awake_s for a, b in pairwise(sent)]
    assert {one.headers["webhook-id"] for one in sent} == {delivery.id}
    assert min(gaps) > 0.45, gaps
    assert max(awake) < 1.0, awake
    assert [entry.status for entry in delivery.log] == [500, 500, 500, 200]


async def test_a_webhook_that_is_never_accepted_is_failed_and_kept_in_the_log(
    webhooks: WebhookStore, receiver: Receiver
) -> None:
    receiver.answer = lambda _: web.Response(status=500)
    await add(webhooks, receiver.url)
    await tell(webhooks, message())

    async with sending(webhooks, settings()):
        delivery = await settled(webhooks)

    assert (delivery.state, delivery.tries) == (TryVerdict.FAILED, 4)


async def test_gone_switches_the_endpoint_off(webhooks: WebhookStore, receiver: Receiver) -> None:
    receiver.answer = lambda _: web.Response(status=410)
    await add(webhooks, receiver.url)
    await tell(webhooks, message(1))

    async with sending(webhooks, settings()):
        await settled(webhooks)
        async with asyncio.timeout(HANG_S):
            while "410" not in await switched_off(webhooks):
                await asyncio.sleep(0.02)
        await tell(webhooks, message(2))
        await asyncio.sleep(0.5)

    assert len(receiver.sent) == 1


async def switched_off(webhooks: WebhookStore) -> str:
    endpoint = await webhooks.endpoint("t", "we_1")
    assert endpoint is not None
    return endpoint.switched_off


async def test_deliveries_of_a_deleted_endpoint_are_dropped(
    webhooks: WebhookStore, receiver: Receiver
) -> None:
    await add(webhooks, receiver.url)
    await tell(webhooks, message())
    await webhooks.remove("t", "we_1")

    async with sending(webhooks, settings()):
        delivery = await settled(webhooks)

    assert delivery.state is TryVerdict.DROPPED
    assert receiver.sent == []


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_a_failure_and_is_not_followed(
    webhooks: WebhookStore, receiver: Receiver, status: int
) -> None:
    async with receiving() as elsewhere:
        headers = {"location": elsewhere.url}
        receiver.answer = lambda _: web.Response(status=status, headers=headers)
        await add(webhooks, receiver.url)
        await tell(webhooks, message())

        async with sending(webhooks, settings(schedule_s=(0.0,))):
            delivery = await settled(webhooks)

        assert delivery.state is TryVerdict.FAILED
        assert elsewhere.sent == []


async def test_retry_after_holds_back_the_receivers_other_deliveries(
    webhooks: WebhookStore, receiver: Receiver
) -> None:
    receiver.answer = lambda n: web.Response(
        status=429 if n == 1 else 200, headers={"retry-after": "1"}
    )
    await add(webhooks, receiver.url)

    async with sending(webhooks, settings()):
        await tell(webhooks, message(1))
        await receiver.wait_for(1)
        await tell(webhooks, message(2))
        sent = await receiver.wait_for(3)

    assert sent[1].at_s - sent[0].at_s >= 0.95


async def test_a_receiver_that_hangs_makes_no_other_late(
    webhooks: WebhookStore, receiver: Receiver
) -> None:
    async with receiving() as hanging:
        hanging.hang = asyncio.Event()
        per_job = [message(n, url=hanging.url) for n in range(40)]
        await tell(webhooks, *per_job)

        async with sending(webhooks, settings()) as sender:
            await hanging.wait_for(4)
            told_s = awake_s()
            await tell(webhooks, message(99, url=receiver.url))
            sender.wake()
            (sent,) = await receiver.wait_for(1)

        assert sent.at_awake_s - told_s < 1.0


async def test_a_hanging_receiver_is_left_after_the_timeout(
    webhooks: WebhookStore, receiver: Receiver
) -> None:
    receiver.hang = asyncio.Event()
    await add(webhooks, receiver.url)
    await tell(webhooks, message())

    async with sending(webhooks, settings(timeout_s=0.3, schedule_s=(0.0,))):
        delivery = await settled(webhooks)

    assert delivery.log[0].error == "no answer in 0.3 s"


async def test_a_burst_to_one_receiver_is_not_slowed_by_its_lane(
    webhooks: WebhookStore, receiver: Receiver
) -> None:
    await tell(webhooks, *(message(n, url=receiver.url) for n in range(60)))

    async with sending(webhooks, settings()):
        started_s = awake_s()
        sent = await receiver.wait_for(60)

    assert sent[-1].at_awake_s - started_s < 2


async def test_a_job_with_its_own_webhook_is_signed_by_the_tenants_secret(
    webhooks: WebhookStore, receiver: Receiver
) -> None:
    await tell(webhooks, message(url=receiver.url))

    async with sending(webhooks, settings()):
        (sent,) = await receiver.wait_for(1)

    secret = (await webhooks.per_job("t")).secrets[0].text
    assert Webhook(secret).verify(sent.body, sent.headers)
    assert (await webhooks.log("t", 1))[0].endpoint == PER_JOB


async def test_a_sender_that_died_in_a_try_is_followed_by_another(
    webhooks: WebhookStore, receiver: Receiver
) -> None:
    await add(webhooks, receiver.url)
    await tell(webhooks, message())
    (taken,) = await webhooks.take(10, hold_ms=300)  # and then it dies

    async with sending(webhooks, settings()):
        (sent,) = await receiver.wait_for(1)
        await settled(webhooks)

    assert sent.headers["webhook-id"] == taken.id


async def test_a_sender_that_wakes_from_the_dead_does_not_undo_what_another_noted(
    webhooks: WebhookStore, receiver: Receiver
) -> None:
    await add(webhooks, receiver.url)
    await tell(webhooks, message())
    (taken,) = await webhooks.take(10, hold_ms=1)
    await webhooks.note(taken, TryVerdict.DELIVERED)

    assert not await webhooks.note(taken, TryVerdict.PENDING, delay_ms=1)
    assert await webhooks.take(10, hold_ms=1) == []


class Answers(AbstractResolver):
    """A name server that answers as it is told, one list a question."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = list(answers)
        self.questions = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.questions += 1
        found = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [
            ResolveResult(
                hostname=host, host=one, port=port, family=socket.AF_INET, proto=0, flags=0
            )
            for one in found
        ]

    async def close(self) -> None:
        return None


def port_of(receiver: Receiver) -> str:
    return receiver.url.split(":")[2].split("/")[0]


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param(["127.0.0.1"], id="loopback"),
        pytest.param(["10.0.0.1"], id="private"),
        pytest.param(["169.254.169.254"], id="metadata"),
        pytest.param(["::ffff:127.0.0.1"], id="mapped"),
        pytest.param(["1.1.1.1", "127.0.0.1"], id="one of two"),
        pytest.param(["::1"], id="loopback 6"),
        pytest.param(["fe80::1%lo"], id="link-local 6 with a zone"),
        pytest.param(["fd00::1"], id="unique local"),
        pytest.param(["2002:7f00:1::"], id="6to4 of loopback"),
        pytest.param(["64:ff9b::a9fe:a9fe"], id="NAT64 of metadata"),
        pytest.param(["2001:0:4136:e378:8000:63bf:f5ff:fffe"], id="Teredo"),
    ],
)
async def test_a_name_that_resolves_inside_is_not_dialled(
    webhooks: WebhookStore, receiver: Receiver, answers: list[str]
) -> None:
    await add(webhooks, f"https://hooks.example.com:{port_of(receiver)}/")
    await tell(webhooks, message())

    async with sending(webhooks, settings(allowed=AllowList()), Answers(answers)):
        delivery = await settled(webhooks)

    assert delivery.state is TryVerdict.REFUSED
    assert "not a public address" in delivery.log[0].error
    assert receiver.sent == []


async def test_an_answer_that_changes_between_check_and_dial_changes_nothing(
    webhooks: WebhookStore, receiver: Receiver
) -> None:
    """DNS rebinding: the first answer is fine, the second is inside; there is no second question,
    and what was checked is what is dialled.
    """
    names = Answers(["127.0.0.2"], ["127.0.0.1"])
    allowed = AllowList.parse(["127.0.0.2/32", "127.0.0.1/32"])
    await add(webhooks, "https://hooks.example.com:1/")
    await webhooks.change(
        "t", "we_1", lambda e: replace(e, url=f"https://hooks.example.com:{port_of(receiver)}/")
    )
    await tell(webhooks, message())

    async with sending(webhooks, settings(allowed=allowed, schedule_s=(0.0,)), names):
        delivery = await settled(webhooks)

    assert names.questions == 1
    assert delivery.state is TryVerdict.FAILED
    assert receiver.sent == []


async def test_a_literal_address_is_checked_although_it_is_never_resolved(
    webhooks: WebhookStore, receiver: Receiver
) -> None:
    """aiohttp skips its resolver for literals; an endpoint written before a rule changed is one."""
    await add(webhooks, receiver.url.replace("http:", "https:"))
    await tell(webhooks, message())

    async with sending(webhooks, settings(allowed=AllowList())):
        delivery = await settled(webhooks)

    assert delivery.state is TryVerdict.REFUSED
    assert receiver.sent == []


async def test_nothing_that_is_refused_when_handed_in_is_dialled_when_it_got_past(
    webhooks: WebhookStore, receiver: Receiver
) -> None:
    """The whole corpus, as endpoints that were written before a rule was."""
    port = port_of(receiver)
    urls = [f"https://{case.values[0]}:{port}/" for case in INSIDE]
    urls += [f"https://hooks.example.com@127.0.0.1:{port}/", receiver.url]
    for number, url in enumerate(urls):
        await add(webhooks, url, f"we_{number}")
    await tell(webhooks, message())

    async with sending(webhooks, settings(allowed=AllowList())):
        async with asyncio.timeout(60):
            while not all(d.state.is_settled for d in await webhooks.log("t", 100)):
                await asyncio.sleep(0.05)
        found = await webhooks.log("t", 100)

    assert len(found) == len(urls) > 50
    assert {delivery.state for delivery in found} == {TryVerdict.REFUSED}
    assert receiver.sent == []


async def test_the_log_is_the_tenants_own(webhooks: WebhookStore, receiver: Receiver) -> None:
    await tell(webhooks, message(url=receiver.url))
    (delivery,) = await webhooks.log("t", 10)

    assert await webhooks.delivery("other", delivery.id) is None
    assert await webhooks.log("other", 10) == []


async def test_nothing_is_kept_for_ever(webhooks: WebhookStore, redis: Redis) -> None:
    await tell(webhooks, message(url="https://a.example/"))

    ttls = [
        await redis.ttl(key)
        for key in await redis.keys("torpor:{webhooks}:*")
        if b":delivery:" in key or b":log:" in key
    ]

    assert len(ttls) == 2
    assert all(0 < ttl <= 7 * 24 * 3600 for ttl in ttls)
