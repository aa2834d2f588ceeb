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
from tests.integration.api.fakes import FakePredictor, chat_result
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


async def test_a_job_shows_its_calls_as_they_are_made_and_what_it_waits_for(
    api: ApiWithJobs,
) -> None:
    line = chat_line()
    line["body"]["tools"] = [{"type": "mcp", "server_label": "box"}]
    job_id = JobId((await api.client.post("/v1/jobs", json=line)).json()["id"])
    loop = Loop(api, job_id)
    await loop.list_tools("box")
    async with chromium() as browser, console(api, browser, f"#/jobs/{job_id}") as page:
        output, log, state = (page.locator(f"#detail-{one}") for one in ("output", "log", "state"))
        predictor = await FakePredictor(loop.store, job_id).start()
        await predictor.chat("I look.")
        name = {"id": "c0", "type": "function", "function": {"name": "box__send"}}
        for part in (
            name,
            {"function": {"arguments": '{"to":'}},
            {"function": {"arguments": "1}"}},
        ):
            await predictor.say({"index": 0, "delta": {"tool_calls": [{"index": 0, **part}]}})
        await predictor.finish(
            chat_result("I look.", tool_calls=said(("c0", "box__send", '{"to":1}')))
        )
        await loop.decide()

        await expect(output).to_have_text('I look.\nbox__send({"to":1})')
        await expect(log).to_contain_text("calls box.send")
        await expect(log).to_contain_text("waits for approval")
        await expect(state).to_have_text("in progress, approval")

        (asked,) = (await api.client.get("/v1/approvals")).json()["data"]
        answer = {"approve": False, "reason": "not today"}
        await api.client.post(f"/v1/jobs/{job_id}/approvals/{asked['id']}", json=answer)
        await expect(log).to_contain_text("box.send denied: not today")


async def test_a_turn_that_starts_over_leaves_the_turns_before(api: ApiWithJobs) -> None:
    line = chat_line()
    line["body"]["tools"] = [{"type": "mcp", "server_label": "box"}]
    job_id = JobId((await api.client.post("/v1/jobs", json=line)).json()["id"])
    loop = Loop(api, job_id)
    await loop.list_tools("box")
    await loop.answer("I look.", said(("c0", "box__read", "{}")))
    await loop.decide()
    (asked,) = (await api.client.get("/v1/approvals")).json()["data"]
    no = {"approve": False, "reason": "no"}
    await api.client.post(f"/v1/jobs/{job_id}/approvals/{asked['id']}", json=no)
    async with chromium() as browser, console(api, browser, f"#/jobs/{job_id}") as page:
        output = page.locator("#detail-output")
        first = await FakePredictor(loop.store, job_id).start()
        await first.chat("lost words ")
        await expect(output).to_contain_text("lost")
        await api.store.redis.hset(f"torpor:{{{job_id}}}", "lease_until_ms", 1)

        second = await FakePredictor(loop.store, job_id).start(can_resume=False)
        await second.chat("new words ")

        await expect(output).to_have_text("I look.\nbox__read({})\nnew words ")
