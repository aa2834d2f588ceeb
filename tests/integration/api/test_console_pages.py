"""The console's other pages in a real browser: search and pages, batches, files, webhooks, usage, keys; its budget."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from api.batch import runner as batch_runner
from eventing.api_key import RedisKeys, mint
from eventing.store.redis_store import RedisStore
from eventing.telemetry.metric.ledger import Ledger
from tests.integration.api.api_with_jobs import ApiWithJobs, api_with_jobs, settings_for
from tests.integration.api.console import Browser, Page, chromium, console, expect, go, in_chromium
from tests.integration.api.receiver import receiving

pytestmark = in_chromium
WIRE_BYTES = 60_000
POLL_BYTES = 10_000
PATHS = {
    "jobs": {"v1/jobs", "v1/overview", "v1/dead-letters"},
    "dead": {"v1/dead-letters"},
    "approvals": {"v1/approvals"},
    "batches": {"v1/batches"},
    "files": {"v1/files"},
    "webhooks": {"v1/webhook_endpoints", "v1/webhook_deliveries"},
    "usage": {"v1/tenant", "v1/tenant/usage", "v1/usage"},
}
"""What each page reads again and again."""


@pytest.fixture
async def api(
    redis_url: str, store: RedisStore, redis: Redis, tmp_path: Path
) -> AsyncIterator[ApiWithJobs]:
    settings = settings_for(redis_url, files_url=f"file://{tmp_path}")
    async with api_with_jobs(settings, store) as made:
        yield made


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as made:
        yield made


@pytest.fixture
async def page(api: ApiWithJobs, browser: Browser) -> AsyncIterator[Page]:
    async with console(api, browser) as made:
        yield made


async def test_jobs_are_searched_filtered_and_paged_and_the_address_says_so(
    api: ApiWithJobs, page: Page
) -> None:
    for number in range(27):
        await api.submit(f"a question about birds {number}")
    needle = await api.submit("a needle")
    await api.client.delete(f"/v1/jobs/{needle}")
    rows = page.locator("#job-list .row")
    await expect(rows).to_have_count(25)

    await page.locator("#older").click()
    await expect(rows).to_have_count(3)
    await page.reload()
    await expect(rows).to_have_count(3)
    await page.keyboard.press("/")
    await page.keyboard.type("NEEDLE")
    await expect(rows).to_have_count(1)
    await page.locator("#filter").select_option("cancelled")
    await expect(page).to_have_url(re.compile(r"#/jobs\?search=NEEDLE&state=cancelled$"))
    await page.reload()

    await expect(rows.locator(".prompt")).to_have_text("a needle")
    await expect(page.locator("#search")).to_have_value("NEEDLE")
    await rows.first.click()
    await expect(page).to_have_url(re.compile(f"#/jobs/{needle}\\?search"))
    await page.reload()
    await expect(page.locator("#detail-title")).to_have_text(needle)


async def test_a_batch_is_started_from_a_file_and_its_results_are_saved(
    api: ApiWithJobs, page: Page
) -> None:
    line = b'{"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m"}}'
    await go(page, "#/batches")
    lines = {"name": "lines.jsonl", "mimeType": "application/jsonl", "buffer": line}
    await page.locator("#batch-file").set_input_files(lines)
    await page.locator("#endpoint").select_option("/v1/embeddings")
    await page.get_by_role("button", name="Start").click()
    batch = page.locator("#batch-list .batch")
    await expect(batch.locator(".state")).to_have_text("validating")
    async with asyncio.TaskGroup() as group:
        runner = group.create_task(batch_runner.run(api.parts.batches, turn_s=0.05))
        await expect(batch.locator(".state")).to_have_text("failed", timeout=15000)
        runner.cancel()
    await expect(batch.locator(".why").first).to_be_visible()

    async with page.expect_download() as waiting:
        await go(page, "#/files")
        await page.get_by_role("button", name="Download lines.jsonl").click()
    path = await (await waiting.value).path()

    assert path.read_bytes() == line


async def test_a_webhook_is_made_tested_rotated_and_deleted(api: ApiWithJobs, page: Page) -> None:
    async with receiving() as receiver:
        await go(page, "#/webhooks")
        await page.locator("#hook-url").fill(receiver.url)
        await page.get_by_role("button", name="Add").click()
        secret = page.locator("#text-body")
        await expect(secret).to_have_text(re.compile("^whsec_"))
        first = await secret.text_content()
        await page.get_by_role("button", name="Close").click()

        endpoint = page.locator("#endpoint-list .endpoint")
        await endpoint.get_by_role("button", name="Test").click()
        await expect(endpoint).to_contain_text("the receiver answered 204")
        await api.answer(await api.submit("tell me"))
        await expect(page.locator("#delivery-list")).to_contain_text("delivered", timeout=15000)
        await endpoint.get_by_role("button", name="Rotate secret").click()
        await page.locator("#ask-yes").click()
        await expect(secret).to_have_text(re.compile("^whsec_"))
        second = await secret.text_content()
        await page.get_by_role("button", name="Close").click()
        await endpoint.get_by_role("button", name="Delete").click()
        await page.locator("#ask-yes").click()

        await expect(endpoint).to_have_count(0)
        assert first != second


async def test_usage_is_plotted_with_its_limits(api: ApiWithJobs, page: Page, redis: Redis) -> None:
    spent = {"busy_ms": 60_000, "kept_ms": 60_000, "jobs": 3, "delivered_tokens": 120}
    own = {"gpu_ms": 60_000, "jobs": 3, "delivered_tokens": 120}
    await Ledger(redis).post({("model", "m"): spent, ("tenant", "default"): own})

    await go(page, "#/usage")

    own_card = page.locator("#own-usage")
    await expect(own_card).to_contain_text("jobs3")
    await expect(own_card.get_by_role("img", name="Tokens: output 120, input 0")).to_be_visible()
    await expect(own_card.locator("svg rect title").first).to_contain_text("output 120")
    await expect(own_card).to_contain_text("requests a minute")
    everyone = page.locator("#all-usage")
    await expect(everyone.get_by_role("img", name="GPU time: busy 60, idle 0")).to_be_visible()
    await page.locator("#span").select_option("7 days")
    await expect(page).to_have_url(re.compile("span=7"))


async def test_a_key_is_made_shown_once_and_revoked(
    redis_url: str, store: RedisStore, redis: Redis, browser: Browser
) -> None:
    scopes = ("jobs:read", "jobs:write", "admin")
    key, text = mint("acme", now_s=0, scopes=scopes, name="mine")
    await RedisKeys(redis).put(key)
    async with api_with_jobs(settings_for(redis_url, keys_source="redis"), store) as api:
        page = await browser.new_page()
        await page.goto(f"{api.url}/console#/keys")
        await page.locator("#key").fill(text)
        await page.keyboard.press("Enter")
        await expect(page.locator("#key-list")).to_contain_text("in use here")

        await page.locator("#key-name").fill("ci")
        await page.locator("#key-requests").fill("5")
        for scope in ("jobs:cancel", "events:write"):
            await page.get_by_label(scope).uncheck()
        await page.get_by_role("button", name="Make a key").click()
        await expect(page.locator("#text-body")).to_have_text(re.compile("^torpor_"))
        made = await page.locator("#text-body").text_content()
        await page.get_by_role("button", name="Close").click()
        await expect(page.locator("#key-list")).to_contain_text("ci")
        bearer = {"authorization": f"Bearer {made}"}
        works = await api.client.get("/v1/jobs", headers=bearer)
        await page.get_by_role("button", name=f"Revoke {str(made)[7:23]}").click()
        await page.locator("#ask-yes").click()

        await expect(page.locator("#key-list")).not_to_contain_text("ci")
        assert works.status_code == 200
        assert str(made) not in await page.content()
        await page.close()


async def test_a_key_that_is_not_given_is_asked_for_once(
    redis_url: str, store: RedisStore, redis: Redis, browser: Browser
) -> None:
    calls: list[str] = []
    async with api_with_jobs(settings_for(redis_url, keys_source="redis"), store) as api:
        page = await browser.new_page()
        page.on("request", lambda request: calls.append(request.url))
        await page.goto(f"{api.url}/console")
        await expect(page.locator("#key-dialog")).to_be_visible()

        await page.keyboard.press("Escape")
        before = len(calls)
        await page.wait_for_timeout(2500)  # longer than a poll's pause

        await expect(page.locator("#key-dialog")).to_be_hidden()
        assert calls[before:] == []
        await page.close()


class Wire:
    """Bytes that came over the wire to a page, headers included, by path."""

    def __init__(self, page: Page) -> None:
        self.bytes_of: dict[str, int] = {}
        self._session = page.context.new_cdp_session(page)
        self._path: dict[str, str] = {}

    async def watch(self) -> None:
        session = await self._session
        session.on("Network.responseReceived", self._begun)
        session.on("Network.loadingFinished", self._over)
        await session.send("Network.enable")

    def _begun(self, event: dict[str, Any]) -> None:
        self._path[event["requestId"]] = event["response"]["url"].split("/", 3)[3].split("?")[0]

    def _over(self, event: dict[str, Any]) -> None:
        path = self._path.get(event["requestId"], "")
        self.bytes_of[path] = int(event["encodedDataLength"])


async def test_the_console_and_its_lists_stay_small(api: ApiWithJobs, browser: Browser) -> None:
    """Counted in bytes: files within 60 kB, each list within 10 kB a poll, however long prompts and errors are."""
    for number in range(30):
        job_id = await api.submit(f"{number} " + "words of a prompt " * 400)
        await api.answer(job_id, "text " * 500)
    page = await browser.new_page()
    wire = Wire(page)
    await wire.watch()

    await page.goto(f"{api.url}/console")
    await expect(page.locator("#job-list .row")).to_have_count(25)
    for name, paths in PATHS.items():
        await go(page, f"#/{name}")
        async with asyncio.timeout(60):
            while not paths <= set(wire.bytes_of):
                await asyncio.sleep(0.05)

    files = {path: size for path, size in wire.bytes_of.items() if path.startswith("console")}
    lists = {path: size for path, size in wire.bytes_of.items() if path.startswith("v1/")}
    await page.close()
    assert "console/main.js" in files
    assert sum(files.values()) <= WIRE_BYTES, files
    assert {path: size for path, size in lists.items() if size > POLL_BYTES} == {}


async def test_every_script_is_named_in_the_page_so_that_none_waits_for_another(
    api: ApiWithJobs, browser: Browser
) -> None:
    page = await browser.new_page()
    scripts: set[str] = set()
    foreign: set[str] = set()
    page.on(
        "request",
        lambda request: (scripts if request.url.startswith(api.url) else foreign).add(request.url),
    )
    await page.goto(f"{api.url}/console")
    await expect(page.locator("#pulse")).to_have_text("live")

    named = await page.evaluate(
        "() => [...document.querySelectorAll('link[rel=modulepreload], script')].map("
        "(n) => n.href || n.src)"
    )
    await page.close()
    assert {url for url in scripts if url.endswith(".js")} == set(named)
    assert {url for url in foreign if not url.startswith("data:")} == set()
