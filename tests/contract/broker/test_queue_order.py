"""The order of the queue: lanes, tenants, and how many events are ahead."""

from collections import Counter

import pytest
from redis.asyncio import Redis

from eventing.broker.queue.queue import LANE_WEIGHTS, Queue, member_of
from eventing.broker.queue.view import QueueView, expected_wait_s
from eventing.job.job import Lane
from tests.contract.broker.queue_rig import NAME, event, ids, put, settle


class TestLanes:
    async def test_a_single_lane_gets_every_turn(self, queue: Queue) -> None:
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

    async def test_an_idle_tenant_earns_no_credit_in_fair_queueing(self, queue: Queue) -> None:
        await put(queue, *(event(f"a-{n:03}") for n in range(100)), tenant="a")
        await settle(queue, *await queue.claim(50))
        await put(queue, *(event(f"b-{n:03}") for n in range(50)), tenant="b")

        order = [name[0] for name in ids(await queue.claim(40))]

        assert 18 <= order.count("a") <= 22


class TestPosition:
    async def test_the_next_event_has_none_ahead(self, queue: Queue, redis: Redis) -> None:
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

    async def test_a_running_or_unknown_job_has_no_position(
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


def test_the_expected_wait_is_that_of_all_ahead_and_the_event_itself() -> None:
    assert expected_wait_s(5, 60) == 6
    assert expected_wait_s(0, 30) == 2
    assert expected_wait_s(5, 0) is None
