"""What a turn asks of the store, and that jobs without tools ask no more than before there were any."""

from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eventing.broker.intake import Intake
from eventing.broker.queue.queue import Queue
from eventing.broker.router import DirectPublisher
from eventing.cloudevent.event import build_binary
from eventing.job.job import JobId, JobState
from eventing.job.tools.document import parse_tools
from eventing.job.tools.server import NO_TOOLS, ToolConfig
from eventing.redis import keys
from eventing.store.redis_store import RedisStore
from tests.contract.broker.stack import trigger
from tests.contract.rig import ANSWER, new_job
from tests.contract.tool_process import ToolProcess, function, listening, tool_process
from tests.unit.predictor.harness import Harness, open_harness

pytestmark = pytest.mark.timeout(60)
COUNTED = ("evalsha", "hgetall")
TURNS: list[dict[str, Any]] = [
    *({"text": "so", "calls": [{"name": "a__a", "arguments": {"n": n}}]} for n in range(2)),
    {"text": "end"},
]


async def done(_: Request, __: bytes) -> Response:
    return JSONResponse({"content": [{"type": "text", "text": "done"}]})


async def asked(redis: Redis) -> dict[str, int]:
    """Scripts and reads of records since the last look."""
    stats = await redis.info("commandstats")
    await redis.config_resetstat()
    return {name: stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in COUNTED}


async def kept(redis: Redis, job_id: JobId) -> list[list[bytes]]:
    """Names of fields, of a job's record and of each entry of its stream. Not bytes: a duration has as many digits as
    it takes.
    """
    entries = await redis.xrange(keys.tokens(job_id))
    records = [await redis.hkeys(keys.job(job_id)), *(list(entry) for _, entry in entries)]
    return [sorted(names) for names in records]


async def predicted(process: ToolProcess, predictor: Harness) -> dict[str, int]:
    """What the predictor asked of the store for what its queue has."""
    held = Queue(process.redis, "models", "pump")
    await held.ensure()
    (claimed,) = await held.claim(1)
    headers, body = build_binary(claimed.event)
    await asked(process.redis)
    answer = await predictor.deliveries.handle(headers, body)
    spent = await asked(process.redis)
    assert (answer.status, answer.event) == (200, None), "the step's event is in its queue"
    await held.send([held.settle_call(claimed.ticket)])
    await asked(process.redis)
    return spent


async def test_a_turn_asks_no_more_of_the_store_than_now(redis: Redis, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(listening(function(done)))
        tool = {"url": url, "kind": "function", "approval": "never", "trusted": True}
        entered = tool_process(redis, tmp_path, {"servers": {"a": tool}})
        process = await stack.enter_async_context(entered)
        store: Any = RedisStore(redis)
        predictor = await stack.enter_async_context(open_harness(store=store, flush_s=10))
        await process.begin({"model": "seeded", "seeded": {"turns": TURNS}}, {"servers": ["a"]})
        spent = []
        for turn in range(3):
            model = await predicted(process, predictor)
            assert await process.deliver("steps") == [200]
            step = await asked(redis)
            if turn < 2:
                assert await process.deliver("tool-a") == [200]
            spent.append((model, step, await asked(redis)))

        assert (await process.job()).state is JobState.COMPLETED
    _, second, last = spent  # the first loads scripts
    assert second[0] == last[0] == {"evalsha": 2, "hgetall": 1}, "a record, a lease, an end"
    claim, settle = 1, 1
    assert second[1] == {"evalsha": claim + 2 + settle, "hgetall": 1}, "begun and committed"
    assert second[2] == {"evalsha": claim + 2 + settle, "hgetall": 1}, "marked and returned"


async def test_jobs_without_tools_cost_the_same_where_tools_are_configured(redis: Redis) -> None:
    tools = parse_tools({"servers": {"a": {"url": "http://a.test/mcp"}}})
    without, beside = [
        [await spent_on_a_job(redis, f"job-{number}-{name}", config) for number in range(4)]
        for name, config in (("without", NO_TOOLS), ("beside", tools))
    ]

    # The first of them loads scripts, and one may meet the end of a counter's minute.
    assert min(calls.total() for calls, _ in without) == min(calls.total() for calls, _ in beside)
    assert {str(names) for _, names in without} == {str(names) for _, names in beside}


async def spent_on_a_job(
    redis: Redis, key: str, tools: ToolConfig
) -> tuple[Counter[str], list[list[bytes]]]:
    """Commands of a job from its submit to its end, and what it leaves."""
    store = RedisStore(redis)
    intake = Intake(store, DirectPublisher(redis, [trigger("http://127.0.0.1:9/")]), tools=tools)
    await redis.config_resetstat()
    new = new_job(key)
    await intake.submit(new)
    lease = (await store.acquire(new.id, "w", can_resume=True)).lease
    await store.finish(lease, ANSWER)
    stats = await redis.info("commandstats")
    ran = {name: each["calls"] for name, each in stats.items() if "config" not in name}
    return Counter(ran), await kept(redis, new.id)
