"""The queue on a real server: order, counts as KEDA reads them, dead consumers, nothing lost."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from eventing import keys
from eventing.broker.queue import LANE_WEIGHTS, Claimed, Queue, QueueView, member_of
from eventing.event import Event
from eventing.job import Lane

NAME = "requests-tiny"
TICKETS = keys.queue(NAME, "tickets")
IDLE_MS = 15_000


def event(number: object, source: str = "/s") -> Event:
    return Event(id=str(number), source=source, type="t", data=b"x" * 10)


async def put(
    queue: Queue, *events: Event, lane: Lane = Lane.DEFAULT, tenant: str = ""
) -> Sequence[int]:
    return list(await queue.send([queue.put_call(e, lane=lane, tenant=tenant) for e in events]))


async def settle(queue: Queue, *claimed: Claimed) -> None:
    await queue.send([queue.settle_call(each.ticket) for each in claimed])


def ids(claimed: Sequence[Claimed]) -> list[str]:
    return [each.event.id for each in claimed]


async def silence(redis: Redis, claimed: Sequence[Claimed], consumer: str = "dead") -> None:
    """Make it long since anybody spoke up for these."""
    await redis.xclaim(
        TICKETS, keys.GROUP, consumer, 0, [c.ticket for c in claimed], idle=IDLE_MS * 4, justid=True
    )


async def make_due(redis: Redis) -> None:
    """Let the waits of all deferred events be over."""
    for ticket in await redis.zrange(keys.queue(NAME, "retry"), 0, -1):
        await redis.zadd(keys.queue(NAME, "retry"), {ticket: 1})


@pytest.fixture
async def queue(redis: Redis) -> Queue:
    made = Queue(redis, NAME, "one", draw=random.Random(7))
    await made.ensure()
    return made


@pytest.fixture
def other(redis: Redis) -> Queue:
    return Queue(redis, NAME, "two", draw=random.Random(8))


async def keda(redis: Redis) -> tuple[int, int]:
    """Lag and pending as KEDA's redis-streams scaler (2.17+) reads them, raw: `XINFO GROUPS` with
    nil as -1 (go-redis 9.22), XLEN when the group is missing, 0 when the stream is; `XPENDING`.
    """
    try:
        groups = await redis.execute_command("XINFO GROUPS", TICKETS)
    except ResponseError:
        return 0, 0
    for group in groups:
        fields = {k.decode() if isinstance(k, bytes) else k: v for k, v in dict(group).items()}
        if fields["name"] in (b"torpor", "torpor"):
            lag = fields["lag"]
            pending = (await redis.xpending(TICKETS, keys.GROUP))["pending"]
            return (-1 if lag is None else int(lag)), int(pending)
    return int(await redis.xlen(TICKETS)), 0


def wanted(lag: int, pending: int) -> int:
    """`(lag > 0 ? lag : 0) + pend`, the formula of our ScaledObject."""
    return (lag if lag > 0 else 0) + pending


class TestStay:
    async def test_an_event_is_handed_out_whole(self, queue: Queue) -> None:
        await put(queue, event(1))

        (claimed,) = await queue.claim(5)

        assert claimed.event == event(1)
        assert claimed.tries == 1
        assert claimed.enqueued_ms > 0

    async def test_it_comes_in_the_order_it_was_put(self, queue: Queue) -> None:
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


class TestDeferred:
    async def test_a_deferred_event_waits_and_comes_again(self, queue: Queue, redis: Redis) -> None:
        await put(queue, event(1))
        (claimed,) = await queue.claim(1)
        await queue.defer(claimed.ticket, 60_000)

        assert await queue.claim(1, claim_idle_ms=IDLE_MS) == []
        await make_due(redis)

        (again,) = await queue.claim(1)
        assert (again.event.id, again.tries) == ("1", 2)

    async def test_anybody_may_take_what_is_due(
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
    async def test_what_a_dead_consumer_held_is_claimed(
        self, queue: Queue, other: Queue, redis: Redis
    ) -> None:
        await put(queue, event(1))
        await silence(redis, await queue.claim(1))

        (orphan,) = await other.claim(1, claim_idle_ms=IDLE_MS)

        assert (orphan.event.id, orphan.tries) == ("1", 2)

    async def test_who_speaks_up_keeps_its_events(
        self, queue: Queue, other: Queue, redis: Redis
    ) -> None:
        await put(queue, event(1))
        claimed = await queue.claim(1)
        await silence(redis, claimed)

        await queue.keep([claimed[0].ticket])

        assert await other.claim(1, claim_idle_ms=IDLE_MS) == []

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

    async def test_no_more_orphans_are_taken_than_asked_for(
        self, queue: Queue, other: Queue, redis: Redis
    ) -> None:
        await put(queue, *(event(n) for n in range(10)))
        await silence(redis, await queue.claim(10))

        first = await other.claim(3, claim_idle_ms=IDLE_MS)
        rest = await queue.claim(20, claim_idle_ms=IDLE_MS)

        assert len(first) == 3
        assert sorted(ids(first) + ids(rest)) == sorted(str(n) for n in range(10))


class TestLanes:
    async def test_a_lane_alone_gets_everything(self, queue: Queue) -> None:
        await put(queue, *(event(n) for n in range(5)), lane=Lane.BATCH)

        assert len(await queue.claim(5)) == 5

    async def test_the_draw_gives_each_lane_its_share(self, queue: Queue) -> None:
        count = 2100
        for lane in Lane:
            await put(queue, *(event(n, f"/{lane}") for n in range(count)), lane=lane)

        drawn: Counter[str] = Counter()
        for _ in range(count // 21):
            claimed = await queue.claim(21)
            drawn.update(each.event.source[1:] for each in claimed)
            await settle(queue, *claimed)

        total = sum(LANE_WEIGHTS.values())
        for lane in Lane:
            share = LANE_WEIGHTS[lane] / total
            spread = (count * share * (1 - share)) ** 0.5
            assert abs(drawn[lane] - count * share) < 4 * spread

    async def test_batch_does_not_starve_behind_a_stream_of_interactive(self, queue: Queue) -> None:
        await put(queue, event("patient"), lane=Lane.BATCH)
        # P(not drawn in 400) = (16/17)^400 < 1e-10; the draw is seeded, so this is not luck.
        for number in range(400):
            await put(queue, event(number), lane=Lane.INTERACTIVE)
            (claimed,) = await queue.claim(1)
            await settle(queue, claimed)
            if claimed.event.id == "patient":
                return
        pytest.fail("the batch event starved")


class TestFairShare:
    async def test_a_small_tenant_does_not_wait_behind_a_large_one(self, queue: Queue) -> None:
        await put(queue, *(event(f"big-{n:03}") for n in range(100)), tenant="big")
        await put(queue, *(event(f"small-{n}") for n in range(3)), tenant="small")

        first = ids(await queue.claim(8))

        assert [each for each in first if each.startswith("small")] == [
            "small-0",
            "small-1",
            "small-2",
        ]

    async def test_tenants_take_turns_for_as_long_as_both_have_work(self, queue: Queue) -> None:
        for number in range(30):
            for tenant in ("a", "b", "c"):
                await put(queue, event(f"{tenant}-{number:02}"), tenant=tenant)

        order = [name[0] for name in ids(await queue.claim(90))]

        for position in range(0, 90, 3):
            assert sorted(order[position : position + 3]) == ["a", "b", "c"]

    async def test_who_comes_late_is_not_paid_for_having_been_away(self, queue: Queue) -> None:
        await put(queue, *(event(f"a-{n:03}") for n in range(100)), tenant="a")
        await settle(queue, *await queue.claim(50))
        await put(queue, *(event(f"b-{n:03}") for n in range(50)), tenant="b")

        order = [name[0] for name in ids(await queue.claim(40))]

        assert 18 <= order.count("a") <= 22


class TestPosition:
    async def test_the_next_in_line_has_nobody_ahead(self, queue: Queue, redis: Redis) -> None:
        await put(queue, *(event(n) for n in range(5)))
        view = QueueView(redis)

        positions = [await view.position(NAME, member_of(event(n))) for n in range(5)]

        assert [p.ahead for p in positions if p] == [0, 1, 2, 3, 4]

    async def test_better_lanes_are_ahead(self, queue: Queue, redis: Redis) -> None:
        await put(queue, event("batch"), lane=Lane.BATCH)
        await put(queue, event("default"), lane=Lane.DEFAULT)
        await put(queue, event("now"), lane=Lane.INTERACTIVE)

        position = await QueueView(redis).position(NAME, member_of(event("batch")))

        assert position is not None
        assert position.ahead == 2

    async def test_what_runs_or_is_unknown_has_no_position(
        self, queue: Queue, redis: Redis
    ) -> None:
        await put(queue, event(1))
        await queue.claim(1)
        view = QueueView(redis)

        assert await view.position(NAME, member_of(event(1))) is None
        assert await view.position(NAME, member_of(event(2))) is None

    async def test_the_expected_wait_follows_the_pace(self, queue: Queue, redis: Redis) -> None:
        await put(queue, *(event(n) for n in range(12)))
        view = QueueView(redis)
        before = await view.position(NAME, member_of(event(11)))
        await settle(queue, *await queue.claim(6))

        after = await view.position(NAME, member_of(event(11)))

        assert before is not None
        assert before.expected_wait_s is None
        assert after is not None
        assert after.expected_wait_s is not None
        pace = (await view.depth(NAME)).settled_per_minute
        assert after.expected_wait_s == pytest.approx(6 * 60 / pace, rel=0.5)


class TestKeda:
    async def test_before_anything_is_there_the_formula_is_zero(self, redis: Redis) -> None:
        assert wanted(*await keda(redis)) == 0

    async def test_the_first_event_of_a_fresh_group_wakes(self, queue: Queue, redis: Redis) -> None:
        assert await keda(redis) == (0, 0)

        await put(queue, event(1))

        assert await keda(redis) == (1, 0)

    async def test_an_event_put_before_the_group_exists_wakes(self, redis: Redis) -> None:
        queue = Queue(redis, NAME, "one")
        await put(queue, event(1))
        assert wanted(*await keda(redis)) == 1

        await queue.ensure()

        assert wanted(*await keda(redis)) == 1

    @settings(
        max_examples=40,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(st.data())
    async def test_the_formula_counts_the_events_in_the_queue_at_every_step(  # noqa: C901
        self, redis: Redis, data: st.DataObject
    ) -> None:
        await redis.flushall()
        queue, other = Queue(redis, NAME, "one"), Queue(redis, NAME, "two")
        await queue.ensure()
        present: set[str] = set()
        in_hand: list[Claimed] = []
        number = 0
        for step in data.draw(st.lists(st.sampled_from("ppppccsssdkrtxo"), max_size=40)):
            match step:
                case "p":  # put
                    number += 1
                    lane = data.draw(st.sampled_from(Lane))
                    await put(queue, event(number), lane=lane, tenant=str(number % 3))
                    present.add(str(number))
                case "c":  # claim
                    in_hand += await queue.claim(data.draw(st.integers(1, 4)))
                case "s" if in_hand:  # settle
                    done = in_hand.pop(data.draw(st.integers(0, len(in_hand) - 1)))
                    await settle(queue, done)
                    present.discard(done.event.id)
                case "d" if in_hand:  # defer
                    await queue.defer(in_hand.pop().ticket, 60_000)
                case "k":  # speak up
                    await queue.keep([each.ticket for each in in_hand])
                case "r":  # the waits are over
                    await make_due(redis)
                case "t":
                    await queue.tidy()
                case "x" if in_hand:  # settled twice
                    await settle(queue, in_hand[0])
                    present.discard(in_hand[0].event.id)
                    await settle(queue, in_hand.pop(0))
                case "o" if in_hand:  # its consumer dies, another takes it
                    await silence(redis, in_hand)
                    in_hand = await other.claim(len(in_hand), claim_idle_ms=IDLE_MS)

            lag, pending = await keda(redis)
            assert lag >= 0, "a nil lag never wakes"
            assert wanted(lag, pending) == len(present)
            depth = await QueueView(redis).depth(NAME)
            assert depth.total_waiting + depth.pending == len(present)
            assert (depth.lag, depth.pending) == (lag, pending)

    async def test_trimming_drops_nothing_that_is_wanted(self, queue: Queue, redis: Redis) -> None:
        await put(queue, *(event(n) for n in range(30)))
        claimed = await queue.claim(10)
        await settle(queue, *claimed[2:])

        await queue.tidy()

        assert await keda(redis) == (20, 2)
        await silence(redis, claimed[:2])
        assert len(await queue.claim(22, claim_idle_ms=IDLE_MS)) == 22

    async def test_trimming_keeps_the_stream_short(self, queue: Queue, redis: Redis) -> None:
        for number in range(300):
            await put(queue, event(number))
            await settle(queue, *await queue.claim(1))
        await queue.tidy()

        assert await redis.xlen(TICKETS) <= 1
        assert await keda(redis) == (0, 0)
