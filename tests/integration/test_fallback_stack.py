"""A model whose engine does not start, in a whole stack: its jobs are answered by the one that stands in for it, and
by itself again once it starts.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.integration.scripted_provider import ScriptedProvider, scripted_provider
from tests.integration.stack import LOOPBACK_PROVIDER, LocalStack, planned_stack

pytestmark = pytest.mark.timeout(180)  # starts that fail are tried again after pauses
in_module_loop = pytest.mark.asyncio(loop_scope="module")
PIPELINES = "own: {fallback: other}\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider() -> AsyncIterator[ScriptedProvider]:
    """Refuses the engine's key when that starts."""
    async with scripted_provider() as running:
        running.models_status = 401
        yield running


@pytest.fixture(scope="module")
def stack(
    provider: ScriptedProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalStack]:
    environment = {
        **LOOPBACK_PROVIDER,
        "TORPOR_COLD_START_SECONDS": "3",
    }
    flags = ("--model", f"own={provider.url}#theirs-4", "--model", "other=seeded")
    folder = tmp_path_factory.mktemp("fallback")
    with planned_stack(folder, PIPELINES, *flags, env=environment) as made:
        yield made


async def ask(stack: LocalStack, **headers: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answer to a chat call of a client that waits, and its job."""
    api = stack.addresses["api"]
    body = {"model": "own", "messages": [{"role": "user", "content": "?"}]}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx.AsyncClient(timeout=150) as client:
        answer = await client.post(f"{api}/v1/chat/completions", json=body, headers=named)
        assert answer.status_code == 200, answer.text
        job = await client.get(f"{api}/v1/jobs/{answer.headers['torpor-job-id']}")
    return answer.json(), job.json()


@in_module_loop
async def test_a_model_that_does_not_start_is_stood_in_for_until_it_does(
    stack: LocalStack, provider: ScriptedProvider
) -> None:
    answer, job = await ask(stack)
    provider.models_status = 200
    own, own_job = await ask(stack, torpor_fallback="none")
    again, _ = await ask(stack)

    assert answer["model"] == "other"
    assert job["model"] == "own"
    assert job["routing"] == {"asked": "own", "answered": "other", "reason": "not_starting"}
    assert own["choices"][0]["message"]["content"] == "Paris."
    assert "routing" not in own_job
    assert again["model"] == "theirs-4"
