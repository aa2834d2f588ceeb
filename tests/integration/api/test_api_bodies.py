"""Bodies as clients send them: compressed, and files under names of every spelling."""

import gzip
import zlib

import brotli
import httpx
import orjson
import pytest
import zstandard

from tests.integration.api.conftest import Rig, chat_line

CODINGS = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("encoding", CODINGS)
async def test_an_encoded_call_is_the_call(rig: Rig, encoding: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    body = CODINGS[encoding](orjson.dumps(chat_line("hi")))
    answer = await rig.client.post("/v1/jobs", content=body, headers=headers)

    assert answer.status_code == 202, answer.text
    shown = await rig.client.get(f"/v1/jobs/{answer.json()['id']}?include=request")
    assert shown.json()["request"]["body"]["messages"] == chat_line("hi")["body"]["messages"]


@pytest.mark.parametrize("encoding", CODINGS)
async def test_an_encoded_upload_is_the_file(rig: Rig, encoding: str) -> None:
    request = httpx.Request(
        "POST", "http://x", files={"file": ("a.jsonl", b"{}\n")}, data={"purpose": "batch"}
    )
    headers = {"content-type": request.headers["content-type"], "content-encoding": encoding}
    body = CODINGS[encoding](request.read())
    answer = await rig.client.post("/v1/files", content=body, headers=headers)

    assert answer.status_code == 200, answer.text
    assert (await rig.client.get(f"/v1/files/{answer.json()['id']}/content")).content == b"{}\n"


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("compress", b"{}", 415),
        ("gzip, br", b"{}", 415),
        ("gzip", b"{}", 400),
        ("br", brotli.compress(bytes(64 * 1024 * 1024), quality=1), 413),
        ("zstd", zstandard.ZstdCompressor().compress(bytes(64 * 1024 * 1024)), 413),
        ("gzip", gzip.compress(bytes(64 * 1024 * 1024)), 413),
    ],
    ids=["unknown", "two", "not gzip", "brotli bomb", "zstd bomb", "gzip bomb"],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/jobs", "/v1/events"])
async def test_an_encoded_body_that_cannot_be_taken_is_refused_by_name(
    rig: Rig, path: str, encoding: str, body: bytes, status: int
) -> None:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    answer = await rig.client.post(path, content=body, headers=headers)

    assert answer.status_code == status, answer.text
    if status == 415:
        assert answer.headers["accept-encoding"] == "gzip, deflate, br, zstd"


@pytest.mark.parametrize(
    "disposition",
    [
        "form-data; name=\"file\"; filename*=UTF-8''na%C3%AFve%20%E2%82%AC.jsonl",
        'form-data; name="file"; filename="x.jsonl"; filename*=UTF-8\'\'na%C3%AFve%20%E2%82%AC.jsonl',
        'form-data; filename*=UTF-8\'\'na%C3%AFve%20%E2%82%AC.jsonl; filename="x"; name="file"',
        'form-data; name="file"; filename="naïve €.jsonl"',
        'form-data; name="file"; filename="=?utf-8?B?bmHDr3ZlIOKCrC5qc29ubA==?="',
    ],
    ids=["alone", "after filename", "before filename", "raw UTF-8", "MIME words"],
)
@pytest.mark.parametrize("is_first", [True, False], ids=["file first", "purpose first"])
async def test_the_name_of_a_file_is_read_whole_however_it_is_written(
    rig: Rig, disposition: str, is_first: bool
) -> None:
    file = f"--b\r\ncontent-disposition: {disposition}\r\n\r\n{{}}\n\r\n".encode()
    purpose = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    parts = [file, purpose] if is_first else [purpose, file]
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = await rig.client.post(
        "/v1/files", content=b"".join([*parts, b"--b--\r\n"]), headers=headers
    )

    assert answer.status_code == 200, answer.text
    assert answer.json()["filename"] == "naïve €.jsonl"
