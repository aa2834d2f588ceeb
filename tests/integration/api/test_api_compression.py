"""gzip of large answers, by exact headers: httpx would decode what it asked for by itself."""

import gzip

import httpx
import orjson
import pytest

from api.http.compression import accepts_gzip
from tests.integration.api.conftest import Rig
from tests.integration.api.fakes import chat_result

TEXT = "many words " * 20_000


async def raw(rig: Rig, path: str, accepted: str | None, method: str = "GET") -> httpx.Response:
    """The answer with its body as it was sent."""
    headers = {} if accepted is None else {"accept-encoding": accepted}
    async with httpx.AsyncClient(base_url=rig.url, timeout=120) as client:
        del client.headers["accept-encoding"]
        async with client.stream(method, path, headers=headers) as answer:
            answer._content = b"".join([piece async for piece in answer.aiter_raw()])
            return answer


async def long_job(rig: Rig) -> str:
    job_id = await rig.submit()
    predictor = await rig.predictor(job_id)
    await predictor.chat("many")
    await predictor.finish(chat_result(TEXT))
    return job_id


async def test_a_large_answer_is_compressed_for_clients_that_accept_gzip(rig: Rig) -> None:
    job_id = await long_job(rig)

    answer = await raw(rig, f"/v1/jobs/{job_id}", "gzip, deflate, br")

    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["vary"] == "Accept-Encoding"
    assert int(answer.headers["content-length"]) == len(answer.content) < len(TEXT) / 10
    body = orjson.loads(gzip.decompress(answer.content))
    assert body["result"]["choices"][0]["message"]["content"] == TEXT


@pytest.mark.parametrize("accepted", [None, "identity", "gzip;q=0", "br"])
async def test_clients_that_do_not_accept_gzip_get_the_plain_body(
    rig: Rig, accepted: str | None
) -> None:
    job_id = await long_job(rig)

    answer = await raw(rig, f"/v1/jobs/{job_id}", accepted)

    assert "content-encoding" not in answer.headers
    assert answer.headers["vary"] == "Accept-Encoding"
    assert orjson.loads(answer.content)["id"] == job_id


async def test_a_small_answer_is_sent_as_it_is(rig: Rig) -> None:
    answer = await raw(rig, "/v1/models", "gzip")

    assert not answer.headers.keys() & {"content-encoding", "vary"}


async def test_a_stream_is_sent_as_it_comes(rig: Rig) -> None:
    job_id = await long_job(rig)

    answer = await raw(rig, f"/v1/jobs/{job_id}/events", "gzip")

    assert "content-encoding" not in answer.headers
    assert b"event: result" in answer.content


async def test_head_has_the_headers_of_get(rig: Rig) -> None:
    job_id = await long_job(rig)

    got = await raw(rig, f"/v1/jobs/{job_id}", "gzip")
    head = await raw(rig, f"/v1/jobs/{job_id}", "gzip", "HEAD")

    named = ("content-encoding", "vary", "content-type")
    assert [head.headers[name] for name in named] == [got.headers[name] for name in named]
    assert head.content == b""


async def test_a_body_with_an_etag_is_not_compressed(rig: Rig) -> None:
    page = (await rig.client.get("/docs")).text
    script = next(part for part in page.split('"') if part.endswith(".js"))

    answer = await raw(rig, script, "gzip")

    assert answer.headers["etag"]
    assert "content-encoding" not in answer.headers


@pytest.mark.parametrize(
    ("header", "is_accepted"),
    [
        ("gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("*", True),
        ("br;q=1.0, gzip;q=0.8", True),
        ("gzip;q=0", False),
        ("*;q=0", False),
        ("gzip;q=0, *", False),
        ("identity, gzip;q=0.5", False),
        ("gzip;q=x", False),
        ("", False),
        ("deflate", False),
    ],
)
def test_accept_encoding_is_read_with_its_weights(header: str, is_accepted: bool) -> None:
    assert accepts_gzip(header) is is_accepted
