"""`torpor.client` as a program uses it, on a real stack."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.stack import MODEL, LocalStack
from torpor.client import AsyncClient, Client, NotCompleted, TorporError, Unreachable

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    made = LocalStack(tmp_path_factory.mktemp("stack"), "--window", "60s").start()
    yield made
    made.stop()


async def test_a_job_is_submitted_waited_for_and_read(stack: LocalStack) -> None:
    async with AsyncClient(stack.addresses["api"]) as torpor:
        job = await torpor.submit("Why?", body={"max_tokens": 4}, metadata={"order": "17"})
        done = await torpor.wait(job.id, timeout_s=120)

    assert done.state == "completed"
    assert done.text
    assert done.data["metadata"] == {"order": "17"}
    assert done.data["model"] == MODEL


async def test_a_stream_goes_on_behind_a_cursor(stack: LocalStack) -> None:
    async with AsyncClient(stack.addresses["api"]) as torpor:
        job = await torpor.submit("Why?", body={"max_tokens": 12, "ignore_eos": True})
        every = [event async for event in torpor.stream(job.id)]
        tokens = [event for event in every if event.name == "tokens"]
        middle = tokens[0].cursor
        rest = [event async for event in torpor.stream(job.id, after=middle)]
        done = await torpor.wait(job.id)

    assert every[-1].name == "result"
    assert "".join(event.text for event in tokens) == done.text
    assert tokens[0].text + "".join(event.text for event in rest) == done.text


async def test_a_stream_and_a_wait_survive_the_apis_restart(stack: LocalStack) -> None:
    async with AsyncClient(stack.addresses["api"]) as torpor:
        job = await torpor.submit("Why?", body={"max_tokens": 300, "ignore_eos": True})
        text, is_cut = "", False
        async for event in torpor.stream(job.id):
            text += event.text
            if text and not is_cut:
                is_cut = True
                (api,) = [p for p in stack.children() if _command(p).endswith("-m api")]
                os.kill(api, signal.SIGKILL)
        done = await torpor.wait(job.id)

    assert is_cut
    assert text == done.text


async def test_the_same_key_is_the_same_job(stack: LocalStack) -> None:
    async with AsyncClient(stack.addresses["api"]) as torpor:
        first = await torpor.submit("x", body={"max_tokens": 1}, idempotency_key="k")
        second = await torpor.submit("x", body={"max_tokens": 1}, idempotency_key="k")

    assert first.id == second.id


async def test_another_end_and_a_refusal_are_errors_with_the_apis_words(
    stack: LocalStack,
) -> None:
    async with AsyncClient(stack.addresses["api"]) as torpor:
        job = await torpor.submit("x", body={"max_tokens": 2000, "ignore_eos": True})
        await torpor.cancel(job.id)
        with pytest.raises(NotCompleted) as ended:
            await torpor.wait(job.id)
        with pytest.raises(TorporError) as refused:
            await torpor.submit("x", model="no-such-model")

    assert ended.value.job.state == "cancelled"
    assert refused.value.status == 422
    assert "no such model" in str(refused.value)


async def test_a_refused_connection_is_reported_at_once() -> None:
    async with AsyncClient("http://127.0.0.1:9") as torpor:
        with pytest.raises(Unreachable, match="nothing answers"):
            await torpor.submit("x", model="m")


async def test_the_blocking_client_works_within_a_running_loop(stack: LocalStack) -> None:
    with Client(stack.addresses["api"]) as torpor:
        job = torpor.submit("Why?", body={"max_tokens": 5, "ignore_eos": True})
        text = "".join(event.text for event in torpor.stream(job.id))
        done = torpor.wait(job.id)

    assert text == done.text != ""


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").replace("\0", " ")
