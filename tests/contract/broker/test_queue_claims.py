"""Claims, retries and dead consumers of the queue on a real server; no event is lost."""

from redis.asyncio import Redis

from eventing.broker.queue.claim import ClaimRoom
from eventing.broker.queue.queue import Queue, member_of
from eventing.broker.queue.view import QueueView, pace_per_minute
from eventing.redis import keys
from eventing.redis.script import Call
from tests.contract.broker.queue_rig import (
    IDLE_MS,
    NAME,
    TICKETS,
    event,
    ids,
    make_due,
    put,
    settle,
    silence,
    sized_event,
)


def defer_call(ticket: str) -> Call:
    """The call that defers an event by an hour."""
    return (
        "defer",
        [keys.queue(NAME, name) for name in ("held", "retry", "tries")],
        [ticket, 3_600_000, 0],
    )


class TestStay:
    async def test_an_event_is_handed_out_whole(self, queue: Queue) -> None:
        await put(queue, event(1))

        (claimed,) = await queue.claim(5)

        assert claimed.event == event(1)
        assert claimed.tries == 1
        assert claimed.enqueued_ms > 0

    async def test_events_of_a_lane_are_claimed_in_order(self, queue: Queue) -> None:
        await put(queue, *(event(n) for n in range(20)))

        assert ids(await queue.claim(20)) == [str(n) for n in range(20)]

    async def test_an_event_in_hand_is_not_handed_out_again(
        self, queue: Queue, other: Queue
    ) -> None:
        await put(queue, event(1))
        await queue.claim(5)

        assert await other.claim(5, claim_idle_ms=IDLE_MS) == []

    async def test_the_same_event_twice_is_one_event(self, queue: Queue) -> None:
        assert await put(queue, event(1), event(1)) == [1, 0]

        assert ids(await queue.claim(5)) == ["1"]

    async def test_a_settled_event_leaves_nothing(self, queue: Queue, redis: Redis) -> None:
        await put(queue, event(1))
        await settle(queue, *await queue.claim(1))
        await queue.tidy()

        left = {key async for key in redis.scan_iter(match=f"torpor:{{{NAME}}}:*")}
        assert left <= {TICKETS.encode(), keys.queue(NAME, "pace").encode()}
        assert await redis.ttl(keys.queue(NAME, "pace")) > 0

    async def test_a_settled_event_may_come_again(self, queue: Queue) -> None:
        await put(queue, event(1))
        await settle(queue, *await queue.claim(1))

        assert await put(queue, event(1)) == [1]

        assert ids(await queue.claim(1)) == ["1"]

    async def test_settling_twice_does_nothing_more(self, queue: Queue) -> None:
        await put(queue, event(1), event(2))
        first, _ = await queue.claim(2)

        await settle(queue, first, first)

        assert (await QueueView(queue._redis).depth(NAME)).pending == 1

    async def test_an_event_put_again_while_in_hand_is_delivered_again(self, queue: Queue) -> None:
        # A dead letter that is redriven before its pump could settle it: the redrive's event is
        # the same event, and its 202 was a promise.
        await put(queue, event(1))
        (claimed,) = await queue.claim(1)

        await put(queue, event(1))
        await settle(queue, claimed)

        (again,) = await queue.claim(1)
        assert (again.event.id, again.tries) == ("1", 1)
        await settle(queue, again)
        assert await queue.claim(1) == []

    async def test_an_event_of_which_only_half_survived_can_be_put_again(
        self, queue: Queue, redis: Redis
    ) -> None:
        # Redis 7.0 applies half a script when the power was cut inside it (test_power_cut.py); a
        # name that is known and in no line would be taken for a duplicate for ever.
        await redis.hset(keys.queue(NAME, "events"), member_of(event(1)), b"1 {}")

        assert await put(queue, event(1)) == [1]

        assert ids(await queue.claim(5)) == ["1"]

    async def test_a_store_that_came_back_empty_is_set_up_again(
        self, queue: Queue, redis: Redis
    ) -> None:
        await redis.flushall()

        assert await queue.claim(1) == []
        await put(queue, event(1))

        assert ids(await queue.claim(1)) == ["1"]

    async def test_waiting_ends_when_something_is_put(self, queue: Queue) -> None:
        await queue.claim(1)
        await put(queue, event(1))

        await queue.wait(9_000)

        assert ids(await queue.claim(1)) == ["1"]

    async def test_a_claim_ends_with_the_event_that_fills_it(self, queue: Queue) -> None:
        await put(queue, *(event(n) for n in range(5)))
        (first,) = await queue.claim(1)

        claimed = await queue.claim(5, most_bytes=2 * first.size)

        assert ids(claimed) == ["1", "2"]
        assert (await QueueView(queue.redis).depth(NAME)).total_waiting == 2

    async def test_a_claim_takes_eight_mebibytes(self, queue: Queue) -> None:
        await put(queue, *(sized_event(n, 1024 * 1024) for n in range(10)))

        assert len(await queue.claim(10)) == 8

    async def test_an_event_larger_than_a_claims_limit_is_claimed_by_itself(
        self, queue: Queue
    ) -> None:
        await put(queue, event(1), event(2))

        assert ids(await queue.claim(5, most_bytes=1)) == ["1"]

    async def test_retries_and_orphans_fill_a_claim_too(
        self, queue: Queue, other: Queue, redis: Redis
    ) -> None:
        await put(queue, *(event(n) for n in range(4)))
        claimed = await queue.claim(4)
        for each in claimed[:2]:
            await queue.defer(each.ticket, 0)
        await silence(redis, claimed[2:])

        taken = []
        for _ in range(4):
            (one,) = await other.claim(9, most_bytes=1, claim_idle_ms=IDLE_MS)
            taken.append(one.event.id)

        assert taken == ["0", "1", "2", "3"]


class TestDeferred:
    async def test_a_deferred_event_waits_and_comes_again(self, queue: Queue, redis: Redis) -> None:
        await put(queue, event(1))
        (claimed,) = await queue.claim(1)
        await queue.defer(claimed.ticket, 60_000)

        assert await queue.claim(1, claim_idle_ms=IDLE_MS) == []
        await make_due(redis)

        (again,) = await queue.claim(1)
        assert (again.event.id, again.tries) == ("1", 2)

    async def test_any_consumer_may_claim_a_due_retry(
        self, queue: Queue, other: Queue, redis: Redis
    ) -> None:
        await put(queue, event(1))
        (claimed,) = await queue.claim(1)
        await queue.defer(claimed.ticket, 0)

        assert ids(await other.claim(1)) == ["1"]
        assert await queue.claim(1) == []

    async def test_a_settled_event_is_not_deferred(self, queue: Queue) -> None:
        await put(queue, event(1))
        (claimed,) = await queue.claim(1)
        await settle(queue, claimed)

        await queue.defer(claimed.ticket, 0)

        assert await queue.claim(1) == []

    async def test_a_deferred_event_is_not_taken_for_an_orphan(
        self, queue: Queue, other: Queue, redis: Redis
    ) -> None:
        await put(queue, event(1))
        claimed = await queue.claim(1)
        await queue.defer(claimed[0].ticket, 3_600_000)
        await silence(redis, claimed)

        assert await other.claim(1, claim_idle_ms=IDLE_MS) == []


class TestDeadConsumers:
    async def test_events_of_a_dead_consumer_are_claimed(
        self, queue: Queue, other: Queue, redis: Redis
    ) -> None:
        await put(queue, event(1))
        await silence(redis, await queue.claim(1))

        (orphan,) = await other.claim(1, claim_idle_ms=IDLE_MS)

        assert (orphan.event.id, orphan.tries) == ("1", 2)

    async def test_a_consumer_that_renews_keeps_its_events(
        self, queue: Queue, other: Queue, redis: Redis
    ) -> None:
        await put(queue, event(1))
        claimed = await queue.claim(1)
        await silence(redis, claimed)

        await queue.keep([claimed[0].ticket])

        assert await other.claim(1, claim_idle_ms=IDLE_MS) == []

    async def test_a_search_serves_the_other_consumers_too(
        self, queue: Queue, other: Queue, redis: Redis
    ) -> None:
        await put(queue, event(1), event(2))
        assert await queue.claim(0, claim_idle_ms=IDLE_MS, search_every_ms=60_000) == []
        claimed = await queue.claim(1)
        await silence(redis, claimed)

        # The other takes what waits, and leaves the search alone until it is due.
        taken = await other.claim(9, claim_idle_ms=IDLE_MS, search_every_ms=60_000)
        assert ids(taken) == ["2"]
        assert ids(await other.claim(9, claim_idle_ms=IDLE_MS, search_every_ms=0)) == ["1"]

    async def test_a_search_that_a_clock_ahead_of_ours_announced_is_due(
        self, queue: Queue, other: Queue, redis: Redis
    ) -> None:
        await put(queue, event(1))
        await queue.claim(0, claim_idle_ms=IDLE_MS, search_every_ms=3_600_000)
        await silence(redis, await queue.claim(1))

        taken = await other.claim(9, claim_idle_ms=IDLE_MS, search_every_ms=2_500)

        assert ids(taken) == ["1"]

    async def test_an_orphan_behind_many_that_live_is_claimed_at_once(
        self, queue: Queue, other: Queue, redis: Redis
    ) -> None:
        # XAUTOCLAIM looks at ten entries for each it may return, always from the first.
        await put(queue, *(event(n) for n in range(40)))
        claimed = await queue.claim(40)
        await silence(redis, claimed[-1:])

        assert ids(await other.claim(1, claim_idle_ms=IDLE_MS)) == ["39"]

    async def test_an_orphan_behind_many_that_wait_is_claimed_at_once(
        self, queue: Queue, other: Queue, redis: Redis
    ) -> None:
        await put(queue, *(event(n) for n in range(250)))
        claimed = await queue.claim(250)
        for each in claimed[:-1]:
            await queue.defer(each.ticket, 3_600_000)
        await silence(redis, claimed)

        assert ids(await other.claim(1, claim_idle_ms=IDLE_MS)) == ["249"]

    async def test_a_claim_reads_one_page_however_long_the_queue_is(
        self, queue: Queue, other: Queue, redis: Redis
    ) -> None:
        # A thousand deferred events held the store for 2.75 ms, every five seconds, and so on.
        count = 1200
        await put(queue, *(event(n) for n in range(count)))
        claimed = await queue.claim(count)
        await queue.send([defer_call(each.ticket) for each in claimed[:-1]])
        await silence(redis, claimed[-1:])

        looks = [await other.claim(1, claim_idle_ms=IDLE_MS) for _ in range(2)]

        assert looks == [[], []]
        assert other.is_searching
        assert ids(await other.claim(1, claim_idle_ms=IDLE_MS)) == [str(count - 1)]
        assert not other.is_searching

    async def test_no_more_orphans_are_taken_than_asked_for(
        self, queue: Queue, other: Queue, redis: Redis
    ) -> None:
        await put(queue, *(event(n) for n in range(10)))
        await silence(redis, await queue.claim(10))

        first = await other.claim(3, claim_idle_ms=IDLE_MS)
        final_batch = await queue.claim(20, claim_idle_ms=IDLE_MS)

        assert len(first) == 3
        assert sorted(ids(first) + ids(final_batch)) == sorted(str(n) for n in range(10))


def test_the_pace_is_of_five_minutes_and_the_one_that_runs() -> None:
    now_s = 100 * 60 + 30

    assert pace_per_minute({94: 7_000, 95: 11, 100: 11, 101: 7_000}, now_s) == 22 / 5.5
    assert pace_per_minute({94: 7_000}, now_s) == 0.0


def test_the_claims_of_a_pump_hold_thirty_two_mebibytes() -> None:
    room, eight = ClaimRoom(), 8 * 1024 * 1024

    assert [room.reserve() for _ in range(5)] == [eight] * 4 + [0]
    room.release(1000)
    assert room.reserve() == 1000
