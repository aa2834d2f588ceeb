"""The same echo job behind FastAPI on five task queues, one module, run in a venv of its own.

    python bench/peers/app.py <celery|rq|arq|taskiq|dramatiq> <serve|work>

Called by `bench.peers.peers`. `POST /echo` hands the job to the queue and answers with its result, which
it gets by the library's own means; where that polls, it polls every 2 ms (arq's and taskiq's
defaults are slower). Settings: `PEER_REDIS` (URL) and `PEER_PORT`. Must not import ours.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

REDIS = os.environ["PEER_REDIS"]
PORT = int(os.environ.get("PEER_PORT", "0"))
POLL_S = 0.002
Call = Callable[[dict[str, Any]], Awaitable[Any]]


def serve(call: Call, start: Callable[[], Awaitable[None]] | None = None) -> None:
    """FastAPI on one uvicorn process."""
    import uvicorn
    from fastapi import FastAPI, Request

    app = FastAPI()
    if start is not None:
        app.router.on_startup.append(start)

    @app.get("/healthz")
    async def healthz() -> str:
        return "ok"

    @app.post("/echo")
    async def echo(request: Request) -> Any:
        return await call(await request.json())

    uvicorn.run(app, port=PORT, log_level="warning", loop="uvloop", http="httptools")


def celery(role: str) -> None:
    from celery import Celery

    app = Celery("peer", broker=REDIS, backend=REDIS)
    app.conf.update(worker_prefetch_multiplier=64, task_acks_late=True, result_expires=3600)

    @app.task(name="echo")
    def echo(message: dict[str, Any]) -> dict[str, Any]:
        return message

    async def call(message: dict[str, Any]) -> Any:
        return await asyncio.to_thread(lambda: echo.delay(message).get(timeout=30))

    if role == "work":
        app.worker_main(["worker", "--concurrency", "1", "--loglevel", "ERROR"])
    else:
        serve(call)


def rq_echo(message: dict[str, Any]) -> dict[str, Any]:
    return message


def rq(role: str) -> None:
    import time

    from redis import Redis
    from rq import Queue, SimpleWorker

    redis = Redis.from_url(REDIS)
    queue = Queue(connection=redis)

    def run(message: dict[str, Any]) -> Any:
        job = queue.enqueue("peer_app.rq_echo", message, result_ttl=3600)
        while (result := job.latest_result()) is None:
            time.sleep(POLL_S)
        return result.return_value

    async def call(message: dict[str, Any]) -> Any:
        return await asyncio.to_thread(run, message)

    if role == "work":
        SimpleWorker([queue], connection=redis).work(logging_level="ERROR")
    else:
        serve(call)


async def arq_echo(_: dict[str, Any], message: dict[str, Any]) -> dict[str, Any]:
    return message


def arq(role: str) -> None:
    from arq import create_pool, run_worker
    from arq.connections import RedisSettings

    settings = RedisSettings.from_dsn(REDIS)
    pool: Any = None

    class Worker:
        functions = (arq_echo,)
        redis_settings = settings
        poll_delay = POLL_S
        max_jobs = 64

    async def start() -> None:
        nonlocal pool
        pool = await create_pool(settings)

    async def call(message: dict[str, Any]) -> Any:
        job = await pool.enqueue_job("arq_echo", message)
        return await job.result(timeout=30, poll_delay=POLL_S)

    if role == "work":
        run_worker(Worker)
    else:
        serve(call, start)


def taskiq_broker() -> tuple[Any, Any]:
    from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

    backend: Any = RedisAsyncResultBackend(redis_url=REDIS, result_ex_time=3600)
    broker = ListQueueBroker(url=REDIS).with_result_backend(backend)

    @broker.task(task_name="echo")
    async def echo(message: dict[str, Any]) -> dict[str, Any]:
        return message

    return broker, echo


def taskiq(role: str) -> None:
    broker, echo = taskiq_broker()

    async def call(message: dict[str, Any]) -> Any:
        task = await echo.kiq(message)
        return (await task.wait_result(check_interval=POLL_S, timeout=30)).return_value

    if role == "work":
        from taskiq.api import run_receiver_task

        async def work() -> None:
            await broker.startup()
            await run_receiver_task(broker, max_async_tasks=64)

        import uvloop

        uvloop.run(work())
    else:
        serve(call, broker.startup)


def dramatiq(role: str) -> None:
    import dramatiq as library
    from dramatiq.brokers.redis import RedisBroker
    from dramatiq.results import Results
    from dramatiq.results.backends import RedisBackend

    backend = RedisBackend(url=REDIS)
    broker = RedisBroker(url=REDIS)
    broker.add_middleware(Results(backend=backend, store_results=True))
    library.set_broker(broker)

    @library.actor(actor_name="echo")
    def echo(message: dict[str, Any]) -> dict[str, Any]:
        return message

    async def call(message: dict[str, Any]) -> Any:
        return await asyncio.to_thread(
            lambda: echo.send(message).get_result(block=True, timeout=30_000)
        )

    if role == "work":
        import signal

        from dramatiq import Worker

        Worker(broker, worker_threads=8).start()
        signal.pause()
    else:
        serve(call)


PEERS = {"celery": celery, "rq": rq, "arq": arq, "taskiq": taskiq, "dramatiq": dramatiq}

if __name__ == "__main__":
    PEERS[sys.argv[1]](sys.argv[2])
