"""How the store's connections behave when there are fewer of them than callers."""

import asyncio

from eventing.connection import connect
from eventing.redis_store import RedisStore
from tests.contract.rig import new_job


async def test_more_callers_than_connections_wait_their_turn(redis_url: str) -> None:
    # redis-py's plain pool raises at once, and a burst of 65 submits became 503s.
    store = RedisStore(connect(redis_url, max_connections=4))

    answers = await asyncio.gather(*(store.create(new_job(f"burst-{n}")) for n in range(200)))

    assert len(answers) == 200
    await store.close()
