"""The OpenAPI document is true: schemathesis finds nothing in it that the api does not do."""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.integration.api.conftest import Rig
from tests.integration.api.fakes import FakeEngine

pytest.importorskip("schemathesis")

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


@pytest.mark.timeout(300)
async def test_the_document_is_what_the_api_does(
    rig: Rig, engine: FakeEngine, tmp_path: Path
) -> None:
    """A fixed seed: the same requests each time."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{rig.url}/openapi.json"),
        *("--checks", ",".join(CHECKS), "--max-examples", "3", "--seed", "1"),
        # That a receiver did not answer is told as a 503, and nobody listens at an invented address.
        *("--exclude-operation-id", "test_webhook_endpoint"),
        # No step runs here that would answer a search: the call would wait for it.
        *("--exclude-operation-id", "search_vector_store"),
        *("--phases", "examples,coverage,fuzzing", "--request-timeout", "5", "--no-color"),
        cwd=tmp_path,  # it keeps a cache where it runs
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()

    assert process.returncode == 0, output.decode()[-6000:]


async def test_the_documents_page_needs_nothing_from_elsewhere(rig: Rig) -> None:
    page = (await rig.client.get("/docs")).text
    script = page.partition('src="')[2].partition('"')[0]

    assert "https://" not in page
    assert len((await rig.client.get(script)).content) > 100_000


async def test_the_document_is_sent_compressed(rig: Rig) -> None:
    answer = await rig.client.get("/openapi.json", headers={"accept-encoding": "gzip"})

    assert answer.headers["content-encoding"] == "gzip"
    assert "ChatCompletionRequest" in answer.json()["components"]["schemas"]
