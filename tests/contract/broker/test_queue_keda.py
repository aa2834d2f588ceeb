"""The queue's counts on a real server, as KEDA reads them."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from eventing.broker.queue.claim import Claimed
from eventing.broker.queue.queue import Queue
from eventing.broker.queue.view import QueueView
from eventing.job.job import Lane
from eventing.redis import keys
from tests.contract.broker.queue_rig import (
    IDLE_MS,
    NAME,
    TICKETS,
    event,
    make_due,
    put,
    settle,
    silence,
)


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
