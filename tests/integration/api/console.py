"""The console in Debian's chromium, driven by Playwright: what its tests share."""

import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.integration.api.api_with_jobs import ApiWithJobs
from tests.time_limits import HANG_S

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
in_chromium = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
expect = playwright.expect
expect.set_options(timeout=1000 * HANG_S)
Page = Any
Browser = Any


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser while the block runs."""
    async with playwright.async_playwright() as driver:
        made = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        await made.close()


@asynccontextmanager
async def console(api: ApiWithJobs, browser: Browser, where: str = "") -> AsyncIterator[Page]:
    """The console, open at the page `where`; any error on it fails the test."""
    context = await browser.new_context(
        color_scheme="dark", viewport={"width": 1360, "height": 960}
    )
    context.set_default_timeout(1000 * HANG_S)
    made = await context.new_page()
    wrong: list[str] = []
    made.on("pageerror", lambda error: wrong.append(str(error)))
    made.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    await made.goto(f"{api.url}/console{where}")
    await expect(made.locator("#pulse")).to_have_text("live")
    yield made
    await context.close()
    assert wrong == []


async def write_job(page: Page, text: str) -> str:
    """Submit from the playground by the keyboard alone; the job's id."""
    await page.keyboard.press("Escape")  # out of any field
    await page.keyboard.press("n")
    await page.keyboard.type(text)
    await page.keyboard.press("Control+Enter")
    link = page.locator("#play-job")
    await expect(link).to_have_text(re.compile("^job_"))
    return str(await link.text_content())


async def submit_job(page: Page, text: str) -> str:
    """Submit by the keyboard, and show the job."""
    job_id = await write_job(page, text)
    await page.locator("#play-job").click()
    await expect(page.locator("#detail-title")).to_have_text(job_id)
    return job_id


async def go(page: Page, where: str) -> None:
    """Show a page of the console: `#/dead`."""
    await page.evaluate("where => { location.hash = where }", where)
