"""The console's page of calls that wait for a person, in a real browser."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from redis.asyncio import Redis

from eventing.job.job import JobId
from eventing.job.tools.call import CallState
from eventing.store.redis_store import RedisStore
from tests.integration.api.api_with_jobs import ApiWithJobs, api_with_jobs, settings_for
from tests.integration.api.conftest import chat_line
from tests.integration.api.console import chromium, console, expect, go, in_chromium
from tests.integration.api.tool_loop import Loop, said

pytestmark = in_chromium


@pytest.fixture
async def api(
    redis_url: str, store: RedisStore, redis: Redis, tmp_path: Path
) -> AsyncIterator[ApiWithJobs]:
    tools = tmp_path / "tools.yaml"
    tools.write_text(yaml.safe_dump({"servers": {"box": {"url": "http://box.tools/mcp"}}}))
    settings = settings_for(redis_url, files_url=f"file://{tmp_path}", tools_file=tools)
    async with api_with_jobs(settings, store) as made:
        yield made


async def test_a_call_is_approved_and_another_denied_on_the_page(api: ApiWithJobs) -> None:
    line = chat_line()
    line["body"]["tools"] = [{"type": "mcp", "server_label": "box"}]
    answer = await api.client.post("/v1/jobs", json=line)
    loop = Loop(api, JobId(answer.json()["id"]))
    await loop.list_tools("box")
    harmful = '{"text": "<b>hi</b>\u202e"}'
    shown = '{"text": "<b>hi</b>\\u202e"}'
    await loop.answer("", said(("c0", "box__send", harmful), ("c1", "box__read", "{}")))
    await loop.decide()
    async with chromium() as browser, console(api, browser) as page:
        await go(page, "#/approvals")
        rows = page.locator("#approval-list > li")
        await expect(rows).to_have_count(2)
        await expect(rows.filter(has_text="send").locator("pre").first).to_have_text(shown)
        await page.get_by_role("button", name="Approve: send").click()
        await expect(rows).to_have_count(1)
        await rows.locator("textarea").fill("private")
        await page.get_by_role("button", name="Deny: read").click()
        await expect(page.locator("#approval-none")).to_be_visible()

    sent, read = (await loop.job()).turns[0].calls
    assert (sent.state, read.state) == (CallState.PENDING, CallState.DENIED)
    assert read.output == "private"
