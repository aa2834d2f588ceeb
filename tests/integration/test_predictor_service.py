"""A predictor as its clients see it: KServe's own client, the openai client, brokers, probes."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import grpc
import openai
import orjson
import psutil  # type: ignore[import-untyped]
import pytest
import pytest_asyncio
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from redis.asyncio import Redis

from eventing.cloudevent.event import build_structured
from eventing.job.job import JobState
from eventing.replica import ReplicaDirectory
from tests.awake import awake_s
from tests.integration.predictor_process import Answered, PredictorProcess, predictors
from tests.time_limits import HANG_S
from tests.unit.predictor.harness import asking, event_of

CANARY = "canary-7f3a"


@pytest.fixture(scope="module")
def predictor(
    tmp_path_factory: pytest.TempPathFactory, redis_url: str
) -> Iterator[PredictorProcess]:
    """One predictor for the tests that leave it as they found it."""
    folder = tmp_path_factory.mktemp("predictor")
    with predictors(folder, 1, TORPOR_REDIS_URL=redis_url, TORPOR_SEEDED_MAX_CONCURRENCY="16") as (
        started,
    ):
        yield started


@pytest_asyncio.fixture
async def client(predictor: PredictorProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    """The openai package, pointed at the predictor, without its retries."""
    base_url = f"{predictor.url}/openai/v1"
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as made:
        yield made


@asynccontextmanager
async def kserve_client(protocol: str) -> AsyncIterator[InferenceRESTClient]:
    made = InferenceRESTClient(RESTConfig(protocol=protocol, timeout=int(HANG_S), retries=0))
    try:
        yield made
    finally:
        await made.close()


async def until_idle(predictor: PredictorProcess, within_s: float = HANG_S) -> None:
    deadline = time.monotonic() + within_s
    while await asyncio.to_thread(predictor.metric, "torpor_predictor_in_flight"):
        assert time.monotonic() < deadline, "a slot is still taken"
        await asyncio.sleep(0.02)


async def test_kserves_own_client_gets_predictions(predictor: PredictorProcess) -> None:
    instances = ["a", {"messages": [{"role": "user", "content": "b"}]}]
    async with kserve_client("v1") as kserve:
        answer = await kserve.infer(predictor.url, {"instances": instances}, model_name="seeded")
    text, chat = answer["predictions"]

    assert text.split()
    assert chat["choices"][0]["message"]["content"]


async def test_kserves_own_client_infers_over_v2(predictor: PredictorProcess) -> None:
    prompts = InferInput(name="prompt", shape=[2], datatype="BYTES", data=["a", "b"])
    request = InferRequest("seeded", [prompts], parameters={"max_tokens": 3})
    async with kserve_client("v2") as kserve:
        answer = await kserve.infer(predictor.url, request, model_name="seeded")

    outputs = {output.name: output.data for output in answer.outputs}
    assert [len(text.split()) for text in outputs["text"]] == [3, 3]
    assert outputs["finish_reason"] == ["length", "length"]


async def test_kserves_own_client_sees_it_live_and_ready(predictor: PredictorProcess) -> None:
    async with kserve_client("v2") as kserve:
        assert await kserve.is_server_live(predictor.url)
        assert await kserve.is_server_ready(predictor.url)
        assert await kserve.is_model_ready(predictor.url, "seeded")


async def test_the_openai_client_chats(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="seeded", messages=[{"role": "user", "content": "hi"}], max_tokens=5
    )

    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


async def test_the_openai_client_streams_the_same_text(client: openai.AsyncOpenAI) -> None:
    whole = await client.completions.create(model="seeded", prompt="hi", max_tokens=9)
    stream = await client.completions.create(model="seeded", prompt="hi", max_tokens=9, stream=True)

    pieces = [chunk.choices[0].text async for chunk in stream]
    assert "".join(pieces) == whole.choices[0].text
    assert len(pieces) == 9


@pytest.mark.parametrize("wanted", [True, False])
async def test_usage_is_streamed_when_asked_for(client: openai.AsyncOpenAI, wanted: bool) -> None:
    stream = await client.chat.completions.create(
        model="seeded",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": wanted},
    )

    assert any([chunk.usage is not None async for chunk in stream]) is wanted


async def test_the_openai_client_lists_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["seeded"]
    assert (await client.models.retrieve("seeded")).id == "seeded"


async def test_the_openai_client_embeds(client: openai.AsyncOpenAI) -> None:
    answer = await client.embeddings.create(model="seeded", input="a", encoding_format="float")

    assert len(answer.data[0].embedding) == 8


async def test_an_unknown_model_is_not_found(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await client.completions.create(model="other", prompt="hi")

    assert refused.value.param == "model"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        pytest.param({"messages": []}, "messages", id="no-messages"),
        pytest.param({"messages": "hi"}, "messages", id="text-for-messages"),
        pytest.param(
            {"messages": [{"role": "user", "content": "hi"}], "stream_options": 1, "stream": True},
            "stream_options",
            id="stream-options",
        ),
    ],
)
async def test_a_bad_call_is_a_400_that_names_the_field(
    predictor: PredictorProcess, body: dict[str, object], param: str
) -> None:
    async with (
        aiohttp.ClientSession(predictor.url) as session,
        session.post("/v1/chat/completions", json={"model": "seeded", **body}) as reply,
    ):
        assert reply.status == 400
        assert (await reply.json())["error"]["param"] == param


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "stream": True}),
        ("/v1/models/seeded:predict", {"instances": ["x"], "parameters": {"seeded": {}}}),
    ],
    ids=["openai", "openai-stream", "kserve"],
)
async def test_a_caller_that_hangs_up_frees_the_slot(
    predictor: PredictorProcess, path: str, body: dict[str, object]
) -> None:
    knobs = {"output_tokens": 3000, "tokens_per_s": 50}
    body = {**body, "seeded": knobs, "parameters": {"seeded": knobs}}
    if "instances" not in body:
        body.pop("parameters")
    timeout = aiohttp.ClientTimeout(total=0.3)
    async with aiohttp.ClientSession(predictor.url, timeout=timeout) as session:
        with pytest.raises(asyncio.TimeoutError):
            await _post(session, path, body)

    await until_idle(predictor)


async def test_a_pump_that_hangs_up_costs_nothing(
    predictor: PredictorProcess, redis: Redis
) -> None:
    event = asking(event_id="hang-up", seeded={"output_tokens": 60})
    assert (await predictor.deliver(event, timeout_s=0.2)).status == 0
    assert (await predictor.deliver(event)).status == 409
    await until_idle(predictor)
    answer = await predictor.deliver(event)

    assert answer.data["state"] == JobState.COMPLETED
    assert answer.data["attempt"] == 1


async def test_structured_events_are_taken(predictor: PredictorProcess, redis: Redis) -> None:
    headers, body = build_structured(asking(event_id="structured", seeded={"output_tokens": 3}))
    async with (
        aiohttp.ClientSession(predictor.url) as session,
        session.post("/events", data=body, headers=headers) as reply,
    ):
        assert reply.status == 200
        assert reply.headers["ce-type"] == "dev.torpor.inference.completed.v1"


async def test_sixteen_jobs_at_once_are_all_answered(
    predictor: PredictorProcess, redis: Redis
) -> None:
    events = [
        asking(f"question {i}", event_id=f"s{i}", seeded={"output_tokens": 50}) for i in range(16)
    ]
    started = awake_s()
    answers = await asyncio.gather(*[predictor.deliver(event) for event in events])

    assert [answer.status for answer in answers] == [200] * 16
    assert len({answer.text for answer in answers}) == 16
    assert awake_s() - started < 3  # one after another they would take 8 s


async def test_the_seventeenth_is_put_off(predictor: PredictorProcess, redis: Redis) -> None:
    knobs = {"output_tokens": 60}
    events = [asking(event_id=f"f{i}", seeded=knobs) for i in range(24)]
    answers: list[Answered] = await asyncio.gather(*[predictor.deliver(e) for e in events])

    assert sorted(answer.status for answer in answers) == [200] * 16 + [503] * 8
    assert all(int(answer.retry_after) >= 1 for answer in answers if answer.status == 503)


async def test_waiting_clients_can_see_where_a_replica_is(
    predictor: PredictorProcess, redis: Redis
) -> None:
    directory = ReplicaDirectory(redis)
    while not (replicas := await directory.list("seeded")):
        await asyncio.sleep(0.1)

    assert [(replica.id, replica.phase) for replica in replicas] == [("p0", "ready")]
    assert replicas[0].phases["import"] > 0


def test_both_torpor_and_engine_metrics_are_exported(predictor: PredictorProcess) -> None:
    assert predictor.metric("torpor_cold_start_seconds") > 0
    assert predictor.metric("torpor_engine_up") == 1


async def test_nothing_that_was_asked_or_answered_is_in_the_logs(
    predictor: PredictorProcess, redis: Redis, client: openai.AsyncOpenAI
) -> None:
    answered = await predictor.deliver(asking(CANARY, event_id="quiet", seeded={"fail_at": 2}))
    assert answered.status == 500
    await predictor.deliver(event_of({"url": CANARY, "body": CANARY}, event_id="quiet2"))
    told = await predictor.deliver(asking(CANARY, event_id="quiet3"))
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(
            model="seeded",
            messages=[{"role": CANARY, "content": 1}],  # type: ignore[misc,list-item]
        )
    async with aiohttp.ClientSession(predictor.url) as session:
        await session.post("/v1/models/seeded:predict", json={"instances": [[CANARY]]})
    log = predictor.log.read_text()

    assert CANARY not in log
    assert told.text not in log


async def test_without_a_store_jobs_are_answered_all_the_same(tmp_path: Path) -> None:
    long = asking(event_id="long", seeded={"output_tokens": 3500, "tokens_per_s": 0})
    with predictors(tmp_path, 1) as (predictor,):
        first = await predictor.deliver(asking(seeded={"output_tokens": 5}))
        again = await predictor.deliver(asking(seeded={"output_tokens": 5}))
        failed = await predictor.deliver(event_of(b"no json", event_id="bad"))
        whole = await predictor.deliver(long)

    assert (first.status, first) == (200, again)
    assert failed.data["state"] == JobState.FAILED
    assert len(whole.text.split()) == 3500


async def test_grpc_is_served_where_it_is_asked_for(tmp_path: Path, port: int) -> None:
    prompts = InferInput(name="prompt", shape=[1], datatype="BYTES", data=[b"a"])
    request = InferRequest("seeded", [prompts], parameters={"max_tokens": 3})
    with predictors(tmp_path, 1, TORPOR_GRPC_PORT=str(port)):
        client = InferenceGRPCClient(f"127.0.0.1:{port}", use_ssl=False, timeout=int(HANG_S))
        answer = await client.infer(request)
        await client.close()

    assert len(answer.outputs[0].data[0].split()) == 3


async def test_grpc_names_an_invalid_field_and_binds_loopback_only(
    tmp_path: Path, port: int
) -> None:
    """One process for what gRPC refuses: each start costs seconds."""
    prompts = InferInput(name="prompt", shape=[1], datatype="BYTES", data=[b"a"])
    torn = InferInput(name="prompt", shape=[3], datatype="BYTES", data=[b"a"])
    refused = {
        "max_tokens": InferRequest("seeded", [prompts], parameters={"max_tokens": -1}),
        "shape": InferRequest("seeded", [torn]),
        "BYTES": InferRequest("seeded", [InferInput("x", [1], "INT64", [1])]),
    }
    with predictors(tmp_path, 1, TORPOR_GRPC_PORT=str(port)) as (predictor,):
        client = InferenceGRPCClient(
            f"127.0.0.1:{port}", use_ssl=False, timeout=int(HANG_S), retries=0
        )
        for word, request in refused.items():
            with pytest.raises(grpc.RpcError) as caught:
                await client.infer(request)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, (
                predictor.log.read_text()
            )
            assert word in str(caught.value.details())
        with pytest.raises(grpc.RpcError) as unknown:
            await client.infer(InferRequest("other", [prompts]))
        await client.close()
        listening = [c.laddr for c in psutil.net_connections("tcp") if c.status == "LISTEN"]

    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    at = [address.ip.removeprefix("::ffff:") for address in listening if address.port == port]
    assert at == ["127.0.0.1"]


async def test_the_model_cannot_be_unloaded(predictor: PredictorProcess) -> None:
    async with aiohttp.ClientSession(predictor.url) as session:
        for verb in ("unload", "load"):
            reply = await session.post(f"/v2/repository/models/seeded/{verb}")
            assert reply.status == 501

    assert predictor.is_ready()


async def test_deliveries_need_the_token_where_there_is_one(tmp_path: Path) -> None:
    headers = {"authorization": "Bearer secret"}
    with predictors(tmp_path, 1, TORPOR_DELIVERY_TOKEN="secret") as (predictor,):
        async with aiohttp.ClientSession(predictor.url) as session:
            assert (await session.post("/events", data=b"")).status == 401
            assert (await session.post("/events", data=b"", headers=headers)).status == 400


def test_a_waking_predictor_answers_and_says_that_it_is_not_ready(tmp_path: Path) -> None:
    started = PredictorProcess(tmp_path, {"TORPOR_SEEDED_START_UP_S": "30"})
    try:
        deadline = time.monotonic() + 40
        while (waking := _probe(started)) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert waking["ready"] is False
        assert waking["phase"] in ("import", "weights")
        assert not started.is_ready()
        assert [line["level"] for line in started.lines()] == ["info"] * len(started.lines())
        assert [line["event"] for line in started.lines()].count("loading") == 1
        started.process.terminate()
        assert started.wait() == 0
    finally:
        started.end()


def test_a_taken_port_is_one_clear_line(predictor: PredictorProcess) -> None:
    ended = _run("--engine", "seeded", "--host", "127.0.0.1", "--port", str(predictor.port))

    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert str(predictor.port) in ended.stderr


def test_wrong_settings_are_all_named_at_once() -> None:
    ended = _run("--engine", "seeded", TORPOR_LEASE_S="soon", TORPOR_FLUSH_MS="1000")

    assert ended.returncode == 2
    assert "TORPOR_LEASE_S: " in ended.stderr
    assert "TORPOR_FLUSH_MS: " in ended.stderr


def test_settings_can_be_shown_without_their_secrets() -> None:
    ended = _run("--print-settings", TORPOR_REDIS_URL="redis://:hidden@127.0.0.1/0")

    assert ended.returncode == 0
    assert "hidden" not in ended.stderr + ended.stdout


async def _post(session: aiohttp.ClientSession, path: str, body: dict[str, object]) -> bytes:
    async with session.post(path, json=body) as reply:
        return await reply.read()


def _probe(process: PredictorProcess) -> dict[str, object] | None:
    ended = subprocess.run(
        ["curl", "-s", "-m", "1", f"{process.url}/readyz"], capture_output=True, check=False
    )
    return orjson.loads(ended.stdout) if ended.stdout else None


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "predictor", *arguments],
        env={"PATH": "/usr/bin:/bin"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


async def test_an_offer_of_http2_is_ignored_and_the_body_read(predictor: PredictorProcess) -> None:
    """As `curl --http2` and stock Java clients make it."""
    body = orjson.dumps({"model": "seeded", "prompt": "a", "max_tokens": 2})
    curl = await asyncio.create_subprocess_exec(
        *("curl", "-sS", "--http2", "-H", "content-type: application/json", "-d", body),
        f"{predictor.url}/openai/v1/completions",
        stdout=asyncio.subprocess.PIPE,
    )
    answer, _ = await curl.communicate()

    assert orjson.loads(answer)["object"] == "text_completion"
