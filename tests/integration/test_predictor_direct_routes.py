"""The predictor's direct routes: who may use them, how large a call may be, KServe's protocols to the letter."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import httpx
import pytest
import pytest_asyncio
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelMetadataRequest, ServerLiveRequest
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from tests.integration.predictor_process import PredictorProcess, predictors
from tests.redis_server import free_port

CHAT = {"model": "seeded", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
INFER = {"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["hi"]}]}
PREDICT = {"instances": ["hi"], "parameters": {"max_tokens": 2}}
DIRECT = [
    ("POST", "/v1/chat/completions", CHAT),
    ("POST", "/openai/v1/completions", {"model": "seeded", "prompt": "x", "max_tokens": 1}),
    ("POST", "/v1/models/seeded:predict", PREDICT),
    ("POST", "/v2/models/seeded/infer", INFER),
    ("POST", "/invocations", CHAT),
    ("POST", "/v1/chat/completions/batch", CHAT | {"messages": [CHAT["messages"]] * 2}),
    ("GET", "/v1/models", None),
    ("GET", "/v2/models/seeded", None),
    ("GET", "/metrics", None),
    ("GET", "/openapi.json", None),
]
PROBES = ["/healthz", "/readyz", "/health", "/ping", "/", "/v2/health/ready", "/v2/health/live"]
EVENT = {"ce-id": "1", "ce-source": "/s", "ce-type": "t", "ce-specversion": "1.0"}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PredictorProcess]:
    with predictors(tmp_path_factory.mktemp("open"), 1) as (started,):
        yield started


@pytest_asyncio.fixture
async def client(predictor: PredictorProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=predictor.url) as made:
        yield made


class TestAccess:
    async def test_with_a_token_every_direct_route_asks_for_it(self, tmp_path: Path) -> None:
        port = free_port()
        settings = {"TORPOR_DIRECT_TOKEN": "s3cret", "TORPOR_GRPC_PORT": str(port)}
        with predictors(tmp_path, 1, **settings) as (one,):
            async with httpx.AsyncClient(base_url=one.url) as client:
                for method, path, body in DIRECT:
                    for key in ("", "Bearer wrong", "s3cret"):
                        headers = {"authorization": key} if key else {}
                        answer = await client.request(method, path, json=body, headers=headers)
                        assert answer.status_code == 401, (path, key)
                        assert answer.headers["www-authenticate"] == "Bearer"
                    headers = {"authorization": "Bearer s3cret"}
                    answer = await client.request(method, path, json=body, headers=headers)
                    assert answer.status_code == 200, (path, answer.text)
                for path in PROBES:
                    assert (await client.get(path)).status_code == 200, path
                # Deliveries have a token of their own.
                assert (await client.post("/events", headers=EVENT)).status_code == 202
            await _grpc_asks_for_the_token(port)

    async def test_on_knative_without_a_token_they_are_off(self, tmp_path: Path) -> None:
        with predictors(tmp_path, 1, K_SERVICE="seeded-predictor") as (one,):
            async with httpx.AsyncClient(base_url=one.url) as client:
                for method, path, body in DIRECT:
                    answer = await client.request(method, path, json=body)
                    assert answer.status_code == 403, path
                    assert "TORPOR_DIRECT_TOKEN" in answer.json()["error"]["message"]
                for path in PROBES:
                    assert (await client.get(path)).status_code == 200, path
                assert (await client.post("/events", headers=EVENT)).status_code == 202

    @pytest.mark.parametrize("is_said", [True, False])
    async def test_the_operator_may_decide(self, tmp_path: Path, is_said: bool) -> None:
        settings = {"TORPOR_DIRECT_ROUTES": str(is_said).lower()}
        if is_said:
            settings["K_SERVICE"] = "seeded-predictor"
        with predictors(tmp_path, 1, **settings) as (one,):
            async with httpx.AsyncClient(base_url=one.url) as client:
                answer = await client.post("/v1/chat/completions", json=CHAT)
                assert answer.status_code == (200 if is_said else 403)

    async def test_a_body_over_the_limit_is_refused_announced_or_not(self, tmp_path: Path) -> None:
        async def in_chunks() -> AsyncIterator[bytes]:
            for _ in range(8):
                yield b" " * 1024

        with predictors(tmp_path, 1, TORPOR_DIRECT_BODY_LIMIT_BYTES="4096") as (one,):
            async with httpx.AsyncClient(base_url=one.url) as client:
                for path in ("/v1/chat/completions", "/v2/models/seeded/infer"):
                    whole = await client.post(path, content=b" " * 5000)
                    chunked = await client.post(path, content=in_chunks())
                    assert (whole.status_code, chunked.status_code) == (413, 413), path
                small = await client.post("/v1/chat/completions", json=CHAT)
                assert small.status_code == 200

    async def test_an_event_larger_than_a_broker_takes_is_refused_before_it_is_sent(
        self, predictor: PredictorProcess
    ) -> None:
        host, port = predictor.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = "".join(f"{name}: {value}\r\n" for name, value in EVENT.items())
        writer.write(f"POST /events HTTP/1.1\r\nhost: x\r\n{head}".encode())
        writer.write(b"content-length: 300000000\r\n\r\n")
        status = await reader.readline()
        writer.close()
        await writer.wait_closed()

        assert b" 413 " in status


class TestKServe:
    @pytest.mark.parametrize(
        ("change", "named"),
        [({"inputs": None}, "inputs"), ({"id": 5}, "id"), ({"inputs": [{}]}, "inputs.0.name")],
        ids=["no inputs", "a number for an id", "a tensor without a name"],
    )
    async def test_a_body_of_another_form_is_a_400_with_the_protocols_error(
        self, client: httpx.AsyncClient, change: dict[str, object], named: str
    ) -> None:
        answer = await client.post("/v2/models/seeded/infer", json=INFER | change)

        assert answer.status_code == 400
        assert answer.json()["error"].startswith(f"{named}: ")

    async def test_infer_needs_no_id_and_gives_back_the_one_it_got(
        self, client: httpx.AsyncClient
    ) -> None:
        without = await client.post("/v2/models/seeded/infer", json=INFER)
        with_id = await client.post("/v2/models/seeded/infer", json={**INFER, "id": "mine"})
        with_null = await client.post("/v2/models/seeded/infer", json={**INFER, "id": None})

        assert without.status_code == with_null.status_code == 200
        assert without.json()["id"]
        assert with_id.json()["id"] == "mine"
        assert without.json()["outputs"] == with_id.json()["outputs"]

    async def test_outputs_choose_among_what_is_announced(self, client: httpx.AsyncClient) -> None:
        metadata = (await client.get("/v2/models/seeded")).json()
        names = [each["name"] for each in metadata["outputs"]]
        assert names == ["text", "finish_reason"]
        assert metadata["inputs"] == [{"name": "prompt", "datatype": "BYTES", "shape": [-1]}]

        for name in names:
            asked = {**INFER, "outputs": [{"name": name}]}
            answer = (await client.post("/v2/models/seeded/infer", json=asked)).json()
            assert [each["name"] for each in answer["outputs"]] == [name]
        unknown = {**INFER, "outputs": [{"name": "logits"}]}
        refused = await client.post("/v2/models/seeded/infer", json=unknown)
        assert refused.status_code == 400
        assert "logits" in refused.text

    async def test_the_server_announces_no_extension_that_it_refuses(
        self, client: httpx.AsyncClient
    ) -> None:
        assert (await client.get("/v2")).json()["extensions"] == []

    @pytest.mark.parametrize("extra", [{}, {"time": "2026-11-29T00:00:00Z"}, {"subject": "x"}])
    @pytest.mark.parametrize("kind", ["", "; charset=utf-8"])
    async def test_predict_takes_a_structured_cloudevent_and_answers_with_one(
        self, client: httpx.AsyncClient, extra: dict[str, str], kind: str
    ) -> None:
        event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", **extra}
        event |= {"datacontenttype": "application/json", "data": PREDICT}  # type: ignore[dict-item]
        headers = {"content-type": f"application/cloudevents+json{kind}"}
        answer = await client.post("/v1/models/seeded:predict", json=event, headers=headers)

        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("application/cloudevents+json")
        told = answer.json()
        assert told["specversion"] == "1.0"
        assert len(told["data"]["predictions"]) == 1

    async def test_predict_takes_a_binary_cloudevent_and_plain_json_with_a_charset(
        self, client: httpx.AsyncClient
    ) -> None:
        url = "/v1/models/seeded:predict"
        binary = await client.post(url, json=PREDICT, headers=EVENT)
        plain = await client.post(
            url, json=PREDICT, headers={"content-type": "application/json; charset=utf-8"}
        )

        assert binary.status_code == plain.status_code == 200
        assert binary.headers["ce-type"] == "io.kserve.inference.response"
        assert len(plain.json()["predictions"]) == 1

    async def test_a_broken_structured_event_is_the_callers_fault(
        self, client: httpx.AsyncClient
    ) -> None:
        headers = {"content-type": "application/cloudevents+json"}
        for body in (b"{", b"[]", b'{"specversion": "1.0"}'):
            answer = await client.post("/v1/models/seeded:predict", content=body, headers=headers)
            assert answer.status_code == 400, body


class TestAsVllm:
    async def test_both_model_routes_have_the_context_length(
        self, client: httpx.AsyncClient
    ) -> None:
        for prefix in ("/v1", "/openai/v1"):
            (listed,) = (await client.get(f"{prefix}/models")).json()["data"]
            one = (await client.get(f"{prefix}/models/seeded")).json()
            assert listed["max_model_len"] == one["max_model_len"] == 4096
            assert one["id"] == listed["id"] == listed["root"] == "seeded"
        kserve = (await client.get("/v1/models/seeded")).json()
        assert (kserve["name"], kserve["ready"]) == ("seeded", True)

    async def test_options_of_a_stream_are_refused_without_one(
        self, client: httpx.AsyncClient
    ) -> None:
        for said in ({}, {"stream": False}):
            body = {**CHAT, **said, "stream_options": {"include_usage": True}}
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "stream_options"

    async def test_invocations_is_the_endpoint_that_the_body_is_of(
        self, client: httpx.AsyncClient
    ) -> None:
        chat = await client.post("/invocations", json=CHAT)
        text = await client.post(
            "/invocations", json={"model": "seeded", "prompt": "x", "max_tokens": 1}
        )
        streamed = await client.post("/invocations", json={**CHAT, "stream": True})
        neither = await client.post("/invocations", json={"model": "seeded"})

        assert chat.json()["object"] == "chat.completion"
        assert text.json()["object"] == "text_completion"
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert neither.status_code == 400

    async def test_ping_and_version(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/ping")).status_code == 200
        assert (await client.post("/ping")).status_code == 200
        assert (await client.get("/version")).json() == {"version": "seeded"}


async def _grpc_asks_for_the_token(port: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert (await stub.ServerLive(ServerLiveRequest())).live
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ModelMetadata(ModelMetadataRequest(name="seeded"))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        key = (("authorization", "Bearer s3cret"),)
        known = await stub.ModelMetadata(ModelMetadataRequest(name="seeded"), metadata=key)
        assert known.name == "seeded"


async def test_a_thought_has_both_names_in_a_stream_and_in_a_whole_answer(
    client: httpx.AsyncClient,
) -> None:
    body = {**CHAT, "max_tokens": 6, "seeded": {"reasoning_tokens": 3}}
    message = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]["message"]
    streamed = await client.post("/v1/chat/completions", json={**body, "stream": True})
    deltas = [
        choice["delta"]
        for line in streamed.text.splitlines()
        if line.startswith("data: {")
        for choice in json.loads(line[6:])["choices"]
    ]

    assert message["reasoning"] == message["reasoning_content"] != ""
    for name in ("reasoning", "reasoning_content"):
        assert "".join(delta.get(name, "") for delta in deltas) == message["reasoning"]
