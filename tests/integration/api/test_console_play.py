"""The playground, and calls copied as code, in a real browser."""

import asyncio
import base64
import json
import re
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from eventing.job.job import JobId
from eventing.settings import ModelCard
from eventing.store.redis_store import RedisStore
from tests.integration.api.api_with_jobs import ApiWithJobs, api_with_jobs, settings_for
from tests.integration.api.console import (
    Page,
    chromium,
    console,
    expect,
    go,
    in_chromium,
    write_job,
)
from tests.integration.api.fakes import FakePredictor, chat_result

pytestmark = in_chromium
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture
async def api(redis_url: str, store: RedisStore, redis: Redis) -> AsyncIterator[ApiWithJobs]:
    cards = (ModelCard(name="m", context_tokens=4096),)
    async with api_with_jobs(settings_for(redis_url, models=cards), store) as made:
        yield made


@pytest.fixture
async def page(api: ApiWithJobs) -> AsyncIterator[Page]:
    async with chromium() as browser, console(api, browser, "#/play") as made:
        await expect(made.locator("#model")).to_have_value("m")
        yield made


async def body_of(api: ApiWithJobs, job_id: str) -> dict[str, Any]:
    job = await api.store.get(JobId(job_id))
    assert job is not None
    return dict(job.request.body)


async def until_another(page: Page, job_id: str) -> str:
    """The id of the job that follows `job_id`."""
    link = page.locator("#play-job")
    await expect(link).to_have_text(re.compile(f"^job_(?!{job_id[4:]})"))
    return str(await link.text_content())


async def test_a_conversation_goes_on_is_asked_again_and_survives_a_reload(
    api: ApiWithJobs, page: Page
) -> None:
    first = await write_job(page, "2+2?")
    predictor = await FakePredictor(api.store, first).start()
    await predictor.chat("fo")
    await expect(page.locator("#live")).to_have_text("fo")
    await expect(page.locator("#play-state")).to_contain_text("1 tokens")
    await predictor.finish(chat_result("four"))
    await expect(page.locator("#turns .turn-text")).to_have_count(2)

    await page.locator("#retry").click()
    second = await until_another(page, first)
    await api.answer(second, "4")
    await expect(page.locator("#turns .turn-text").last).to_have_value("4")
    await write_job(page, "why?")
    third = await until_another(page, second)
    await api.answer(third, "because")
    await expect(page.locator("#turns .turn-text")).to_have_count(4)
    await page.reload()

    await expect(page.locator("#turns .turn-text").last).to_have_value("because")
    assert await body_of(api, second) == await body_of(api, first)
    said = [message["content"] for message in (await body_of(api, third))["messages"]]
    assert said == ["2+2?", "4", "why?"]


async def test_every_setting_is_in_the_request(api: ApiWithJobs, page: Page) -> None:
    fields = {
        "max-tokens": "7",
        "temperature": "0.5",
        "top-p": "0.9",
        "seed": "3",
        "deadline": "60",
        "system": "Be brief.",
        "stop": "END\n###",
        "more": '{"top_k": 20}',
    }
    for name, value in fields.items():
        await page.locator(f"#{name}").fill(value)
    await page.locator("#priority").select_option("batch")
    await page.locator("#format").select_option("json_schema")
    await page.locator("#schema").fill('{"type": "object"}')

    job_id = await write_job(page, "hi")

    body = await body_of(api, job_id)
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi"},
        ],
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["END", "###"],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}},
        },
        "top_k": 20,
    }
    job = await api.store.get(JobId(job_id))
    assert job is not None
    assert (job.lane, job.deadline_ms > job.created_ms) == ("batch", True)


async def test_a_tool_is_called_and_answered(api: ApiWithJobs, page: Page) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    await page.locator("#tools").fill(json.dumps(tools))
    first = await write_job(page, "weather in Rome?")
    function = {"name": "weather", "arguments": '{"city": "Rome"}'}
    calls = [{"id": "call_1", "type": "function", "function": function}]
    predictor = await FakePredictor(api.store, first).start()
    await predictor.finish(chat_result("", tool_calls=calls))
    await expect(page.locator("#turns .call")).to_have_text('weather({"city": "Rome"})')

    await page.locator('.turn[data-role="tool"] .turn-text').fill("sunny")
    await page.locator("#send").click()

    body = await body_of(api, await until_another(page, first))
    assert body["tools"] == tools
    assert body["messages"][1:] == [
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
    ]


async def test_an_image_is_sent_and_shown(api: ApiWithJobs, page: Page) -> None:
    pixel = {"name": "pixel.png", "mimeType": "image/png", "buffer": PIXEL}
    await page.locator("input[type=file]").set_input_files(pixel)
    await expect(page.locator(".image img")).to_have_js_property("naturalWidth", 1)

    body = await body_of(api, await write_job(page, "what is this?"))

    text, image = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "what is this?"}
    assert base64.b64decode(image["image_url"]["url"].partition(",")[2]) == PIXEL


async def test_a_running_job_is_stopped(api: ApiWithJobs, page: Page) -> None:
    job_id = await write_job(page, "a long story")
    await (await FakePredictor(api.store, job_id).start()).chat("Once")
    await expect(page.locator("#live")).to_have_text("Once")

    await page.locator("#stop-job").click()

    await expect(page.locator("#play-state")).to_contain_text("cancelled")
    await expect(page.locator("#send")).to_be_visible()


async def test_a_dead_letter_is_edited_and_redriven(api: ApiWithJobs, page: Page) -> None:
    job_id = await api.submit("poisn")
    await (await FakePredictor(api.store, job_id).start()).fail("boom")
    await go(page, "#/dead")
    await page.get_by_role("link", name=f"Edit {job_id}").click()
    await expect(page.locator("#prompt")).to_have_value("poisn")

    await page.locator("#prompt").fill("poison")
    await page.locator("#redrive").click()

    await expect(page.locator("#detail-title")).to_have_text(job_id)
    await expect(page.locator("#detail-state")).to_have_text("queued")
    assert (await body_of(api, job_id))["messages"] == [{"role": "user", "content": "poison"}]


async def test_any_request_is_edited_as_json(api: ApiWithJobs, page: Page) -> None:
    line = {"url": "/v1/embeddings", "body": {"model": "m", "input": "text"}}
    first = (await api.client.post("/v1/jobs", json=line)).json()["id"]
    await go(page, f"#/play?from={first}")
    await expect(page.locator("#raw")).to_have_value(re.compile("embeddings"))

    line["body"]["input"] = "other"  # type: ignore[index]
    await page.locator("#raw").fill(json.dumps(line))
    await page.locator("#send").click()

    assert await body_of(api, await until_another(page, first)) == line["body"]


async def test_what_is_no_json_is_named(api: ApiWithJobs, page: Page) -> None:
    await page.locator("#tools").fill("[")
    await page.locator("#prompt").fill("hi")

    await page.locator("#send").click()

    await expect(page.locator("#alert")).to_contain_text("Tools: ")
    await expect(page.locator("#prompt")).to_have_value("hi")


NAUGHTY = 'it\'s "quoted" $HOME `id` \\n <b> ü\n— done'
RUN = {"curl": ["bash", "-c"], "Python": [sys.executable, "-c"], "JavaScript": ["node", "-e"]}


@pytest.mark.parametrize("language", list(RUN))
async def test_a_call_copied_as_code_runs_and_is_the_same_call(
    api: ApiWithJobs, page: Page, language: str
) -> None:
    for program in (RUN[language][0], *(["curl"] if language == "curl" else [])):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    first = await api.submit(NAUGHTY)
    await api.answer(first)
    await go(page, f"#/jobs/{first}")
    await page.locator("#copy").click()
    await page.get_by_role("tab", name=language).click()
    code = str(await page.locator("#text-body").text_content())

    process = await asyncio.create_subprocess_exec(*RUN[language], code, stdout=PIPE, stderr=PIPE)
    second = await another_job(api, first)
    await api.answer(second, "four")
    _, complaint = await process.communicate()

    assert process.returncode == 0, complaint.decode()
    assert await body_of(api, second) == await body_of(api, first)


async def another_job(api: ApiWithJobs, known: str) -> str:
    """The id of the next job beside `known`."""
    async with asyncio.timeout(60):
        while True:
            page = await api.store.list_jobs("default")
            if other := [job.id for job in page.jobs if job.id != known]:
                return other[0]
            await asyncio.sleep(0.05)
