"""A provider beside a local model in one stack; the local model stands in for it, woken from zero."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.integration.scripted_provider import ScriptedProvider, refuses, scripted_provider
from tests.integration.stack import TORPOR, LocalStack
from tests.redis_server import free_port

in_module_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider() -> AsyncIterator[ScriptedProvider]:
    async with scripted_provider() as running:
        yield running


@pytest.fixture(scope="module")
def stack(
    provider: ScriptedProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalStack]:
    port = free_port()
    fallback = f'[{{"url": "http://127.0.0.1:{port}/v1", "model": "small"}}]'
    environment = {
        "TORPOR_UPSTREAM_TENANTS": '["*"]',
        "TORPOR_UPSTREAM_ALLOW": '["127.0.0.1"]',
        "TORPOR_UPSTREAM_FALLBACKS": fallback,
    }
    flags = ("--model", "small=seeded", "--model", f"big={provider.url}#large-4")
    folder = tmp_path_factory.mktemp("provider") / "data"
    made = LocalStack(folder, *flags, "--port", str(port), env=environment).start()
    yield made
    made.stop()


async def ask(stack: LocalStack, model: str) -> dict[str, Any]:
    """A chat call of a client that waits."""
    body = {"model": model, "messages": [{"role": "user", "content": "?"}]}
    async with httpx.AsyncClient(timeout=120) as client:
        answer = await client.post(stack.addresses["api"] + "/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@in_module_loop
async def test_a_call_goes_to_the_provider_under_its_name_there(
    stack: LocalStack, provider: ScriptedProvider
) -> None:
    answer = await ask(stack, "big")

    assert answer["choices"][0]["message"]["content"] == "Paris."
    assert answer["model"] == "theirs-4"
    assert provider.bodies[-1]["model"] == "large-4"
    assert answer["usage"]["completion_tokens"] == 2


@in_module_loop
async def test_a_local_model_stands_in_for_a_provider_that_fails(
    stack: LocalStack, provider: ScriptedProvider
) -> None:
    provider.answers = [refuses(500)]

    answer = await ask(stack, "big")

    assert answer["choices"][0]["message"]["content"]
    assert answer["routing"]["asked"] == "big"
    assert answer["routing"]["reason"] == "upstream_failed"
    assert ["big", "1", "0", "0"] in await reported(stack)


async def reported(stack: LocalStack) -> list[list[str]]:
    """The lines of `torpor usage` as words, when the job's end has been counted."""
    command = [TORPOR, "usage", "--api", stack.addresses["api"]]
    while True:
        ran = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        said, _ = await ran.communicate()
        rows = [line.split() for line in said.decode().splitlines()]
        if any("stand-in" in row for row in rows):
            return rows


@in_module_loop
async def test_a_providers_model_takes_no_gpu_time_of_ours(stack: LocalStack) -> None:
    await ask(stack, "big")
    await ask(stack, "small")

    def seconds(shown: str, model: str) -> float:
        found = re.findall(rf'torpor_gpu_seconds_total{{model="{model}",.*}} (.*)', shown)
        assert found
        return sum(map(float, found))

    async with httpx.AsyncClient(timeout=120) as client:
        shown = ""
        # Both are posted together: tokens that were counted, and the time in which they were made.
        for model in ("big", "small"):
            counted = re.compile(rf'torpor_tokens_total{{kind="output",model="{model}"}} [1-9]')
            while not counted.search(shown):
                await asyncio.sleep(0.2)
                shown = (await client.get(stack.addresses["api"] + "/metrics")).text
    assert seconds(shown, "small") > 0
    assert seconds(shown, "big") == 0


@pytest.mark.parametrize(
    ("model", "tenants", "reason"),
    [
        ("https://api.example.com/v1", '["*"]', "NAME=URL#MODEL"),
        ("big=https://", '["*"]', "http://HOST"),
        ("big=ftp://api.example.com/v1", '["*"]', "http://HOST"),
        ("big=https://api.example.com/v1", "", "TORPOR_UPSTREAM_TENANTS"),
    ],
    ids=["no-name", "no-host", "other-scheme", "no-tenant"],
)
def test_a_provider_that_could_answer_no_call_is_refused_in_one_line(
    tmp_path: Path, model: str, tenants: str, reason: str
) -> None:
    started = subprocess.run(
        [sys.executable, "-m", "torpor", "up", "--model", model],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=os.environ | {"TORPOR_UPSTREAM_TENANTS": tenants},
    )

    assert started.returncode == 2
    assert reason in started.stderr
    assert started.stderr.count("\n") == 1
