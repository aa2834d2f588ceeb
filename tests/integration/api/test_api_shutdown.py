"""SIGTERM: who is held open is answered, told of the job, and finds it again."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import orjson
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from websockets.asyncio.client import connect

from eventing.store.redis_store import RedisStore
from tests import time_limits
from tests.integration.api.fakes import FakePredictor, chat_result, sse_events
from tests.redis_server import die_with_parent, free_port

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"
LEAST_UNSENT_BYTES = 32 * 1024
"""What the kernel holds at least for a client that takes nothing more."""
TRIGGER = """
metadata: {name: requests-m}
spec:
  filters: [{exact: {type: dev.torpor.inference.requested.v1}}]
  subscriber: {uri: "http://127.0.0.1:9/"}
"""


@dataclass
class Process:
    url: str
    client: httpx.AsyncClient
    popen: subprocess.Popen[bytes]
    log: Path

    def terminate(self) -> None:
        self.popen.send_signal(signal.SIGTERM)


@pytest.fixture
def environment(redis_url: str, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "triggers.yaml").write_text(TRIGGER)
    return (
        os.environ
        | time_limits.ENVIRONMENT
        | {
            "TORPOR_ANONYMOUS_ACCESS": "loopback",
            "TORPOR_REDIS_URL": redis_url,
            "TORPOR_QUEUE_TRIGGERS_FILE": str(tmp_path / "triggers.yaml"),
            "TORPOR_MODELS": '[{"name": "m"}]',
            "TORPOR_FILES_URL": f"file://{tmp_path}/files",
        }
    )


@asynccontextmanager
async def started(environment: dict[str, str], folder: Path) -> AsyncIterator[Process]:
    """A `python -m api` that answers."""
    port = free_port()
    log = folder / f"api-{port}.log"
    with log.open("wb") as out:
        popen = subprocess.Popen(
            [sys.executable, "-m", "api"],
            env=environment | {"TORPOR_PORT": str(port)},
            stdout=out,
            stderr=out,
            preexec_fn=die_with_parent,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            async with asyncio.timeout(40):
                while True:
                    try:
                        await client.get("/healthz")
                        break
                    except httpx.TransportError:
                        assert popen.poll() is None, log.read_text()
                        await asyncio.sleep(0.05)
            yield Process(url, client, popen, log)
    finally:
        popen.kill()
        popen.wait()


@pytest_asyncio.fixture
async def api(environment: dict[str, str], tmp_path: Path, redis: Redis) -> AsyncIterator[Process]:
    async with started(environment, tmp_path) as made:
        yield made


async def job_ids(store: RedisStore, count: int = 1) -> list[str]:
    async with asyncio.timeout(60):
        while True:
            page = await store.list_jobs("default")
            if len(page.jobs) >= count:
                return [job.id for job in page.jobs]
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("path", "body"),
    [(CHAT, BODY), ("/v1/responses", {"model": "m", "input": "hi"})],
    ids=["chat", "response"],
)
async def test_a_held_call_is_answered_503_with_its_job_and_when_to_come_again(
    api: Process, store: RedisStore, path: str, body: dict[str, Any]
) -> None:
    held = asyncio.create_task(api.client.post(path, json=body))
    (job_id,) = await job_ids(store)
    api.terminate()
    answer = await asyncio.wait_for(held, 20)

    assert answer.status_code == 503
    assert answer.headers["torpor-job-id"] == job_id
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "shutting_down"
    assert "Traceback" not in api.log.read_text()


async def test_a_held_poll_is_answered_503_with_its_job(api: Process, redis: Redis) -> None:
    line = {"url": CHAT, "body": BODY}
    job_id = (await api.client.post("/v1/jobs", json=line)).json()["id"]
    async with asyncio.timeout(60), redis.monitor() as monitor:
        held = asyncio.create_task(api.client.get(f"/v1/jobs/{job_id}?wait=30"))
        while job_id not in (await monitor.next_command())["command"]:
            continue
    api.terminate()
    answer = await asyncio.wait_for(held, 20)

    assert (answer.status_code, answer.headers["torpor-job-id"]) == (503, job_id)


async def test_a_stream_that_is_cut_off_ends_in_an_error(api: Process, store: RedisStore) -> None:
    body = BODY | {"stream": True}
    async with api.client.stream("POST", CHAT, json=body) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        api.terminate()
        async with asyncio.timeout(60):
            seen = [line async for line in lines]

    error = orjson.loads([line for line in seen if line.startswith("data: ")][-1][6:])
    assert error["error"]["code"] == "shutting_down"


async def test_clients_that_read_nothing_do_not_hold_up_the_end_of_the_process(
    api: Process, store: RedisStore
) -> None:
    job_id = (await api.client.post("/v1/jobs", json={"url": CHAT, "body": BODY})).json()["id"]
    predictor = await FakePredictor(store, job_id).start()
    async with AsyncExitStack() as stack:
        deaf = [stack.enter_context(deaf_reader(api.url, job_id)) for _ in range(20)]
        async with asyncio.timeout(time_limits.HANG_S):
            while not all(map(is_answered, deaf)):
                await asyncio.sleep(0.02)
            for _ in range(60):  # more than the kernel takes, less than a reader may be behind
                await predictor.chat("x" * 4_000)
            while sum(size >= LEAST_UNSENT_BYTES for size in unsent_bytes(api.url)) < len(deaf):
                await asyncio.sleep(0.02)
            api.terminate()
            assert await asyncio.to_thread(api.popen.wait, time_limits.HANG_S) == 0

    assert "timeout graceful shutdown exceeded" not in api.log.read_text()


@contextmanager
def deaf_reader(url: str, job_id: str) -> Iterator[socket.socket]:
    """A connection that asks for a job's events and never reads; it can hold little."""
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.connect(("127.0.0.1", httpx.URL(url).port))
        made.sendall(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
        made.setblocking(False)
        yield made


def unsent_bytes(url: str) -> list[int]:
    """What the kernel holds for each client of a server."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    port = f":{httpx.URL(url).port:04X}"
    return [int(line[4].split(":")[0], 16) for line in lines if line[1].endswith(port)]


def is_answered(reader: socket.socket) -> bool:
    """Nothing is taken out."""
    try:
        return bool(reader.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


async def test_the_events_of_a_job_end_and_go_on_elsewhere(
    api: Process, store: RedisStore, environment: dict[str, str], tmp_path: Path
) -> None:
    line = {"url": CHAT, "body": BODY}
    job_id = (await api.client.post("/v1/jobs", json=line)).json()["id"]
    predictor = await FakePredictor(store, job_id).start()
    await predictor.chat("one ")
    cursor = ""
    async with api.client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        events = sse_events(answer.aiter_lines())
        async with asyncio.timeout(60):
            while (event := await anext(events)).get("event") != "tokens":
                continue
            cursor = event["id"]
            api.terminate()
            assert [event async for event in events if event.get("event") == "result"] == []
    await predictor.finish(chat_result("one "))
    async with started(environment, tmp_path) as other:
        answer = await other.client.get(
            f"/v1/jobs/{job_id}/events", headers={"last-event-id": cursor}
        )

    assert "event: result" in answer.text


async def test_the_repeat_of_an_sdk_finds_the_job_of_the_call_that_was_cut_off(
    api: Process, store: RedisStore, environment: dict[str, str], tmp_path: Path
) -> None:
    """By the official client, unmodified: it calls again by itself, another process answers."""
    async with started(environment, tmp_path) as other:
        address = api.url

        async def route(request: httpx.Request) -> None:
            request.url = request.url.copy_with(port=httpx.URL(address).port)

        async with (
            httpx.AsyncClient(event_hooks={"request": [route]}) as http,
            openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="none", http_client=http) as sdk,
        ):
            call = asyncio.create_task(sdk.chat.completions.create(**BODY))
            (job_id,) = await job_ids(store)
            address = other.url
            api.terminate()
            predictor = await FakePredictor(store, job_id).start()
            await asyncio.sleep(1)
            await predictor.finish(chat_result("four"))
            completion = await asyncio.wait_for(call, 20)

    assert completion.choices[0].message.content == "four"
    assert await job_ids(store) == [job_id]


async def test_the_repeat_of_a_call_that_was_not_cut_off_is_a_new_job(
    api: Process, store: RedisStore
) -> None:
    again = {"x-stainless-retry-count": "1"}
    calls = [
        asyncio.create_task(api.client.post(CHAT, json=BODY, headers=headers))
        for headers in ({}, again)
    ]

    assert len(set(await job_ids(store, 2))) == 2
    for call in calls:
        call.cancel()


async def test_a_socket_of_responses_is_told_and_its_response_goes_on(
    environment: dict[str, str], store: RedisStore, tmp_path: Path
) -> None:
    call = {"type": "response.create", "model": "m", "input": "hi"}
    async with (
        started(environment, tmp_path) as process,
        connect(f"{process.url.replace('http', 'ws')}/v1/responses") as socket,
    ):
        await socket.send(orjson.dumps(call).decode())
        response = orjson.loads(await socket.recv())["response"]
        process.terminate()
        last = orjson.loads(await socket.recv())

    assert (last["type"], last["error"]["code"]) == ("error", "shutting_down")
    job_id = response["id"].replace("resp_", "job_")
    assert (await FakePredictor(store, job_id).start()).lease.attempt == 1


async def test_a_repeated_compaction_waits_for_the_job_of_the_one_that_was_cut_off(
    environment: dict[str, str], store: RedisStore, tmp_path: Path
) -> None:
    call = {"model": "m", "input": "We launch on Tuesday."}
    async with started(environment, tmp_path) as process:
        held = asyncio.create_task(process.client.post("/v1/responses/compact", json=call))
        async with asyncio.timeout(60):
            while not (await store.list_jobs("default")).jobs:
                await asyncio.sleep(0.02)
        process.terminate()
        cut = await held
    async with started(environment, tmp_path) as process:
        repeat = {"x-stainless-retry-count": "1"}
        again = asyncio.create_task(
            process.client.post("/v1/responses/compact", json=call, headers=repeat)
        )
        await (await FakePredictor(store, cut.headers["torpor-job-id"]).start()).finish(
            chat_result("Tuesday")
        )
        answer = await again

    assert (cut.status_code, answer.status_code) == (503, 200)
    assert answer.headers["torpor-job-id"] == cut.headers["torpor-job-id"]
