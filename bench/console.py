"""The console's first paint and its bytes on the wire, in Debian's chromium.

`python -m bench.console --runs 20 --json console.json`. A stack with the test engine and 30 jobs; each run is a
browser context without a cache. `paint_ms` is the browser's first-contentful-paint, `listed_ms` the moment when the
first row of jobs is there. Aims: 300 ms, 60 kB. Run it on a quiet machine.
"""

import argparse
import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

import aiohttp
from playwright.async_api import Browser, async_playwright

from bench.report import machine, publish, quantile
from bench.torpor_up import torpor_up

JOBS: Final = 30
_PAINT: Final = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
_BYTES: Final = (
    "() => performance.getEntries().filter((e) => e.transferSize && e.name.includes('/console'))"
    ".reduce((sum, e) => sum + e.transferSize, 0)"
)


async def ask(api: str) -> None:
    """Submit the jobs that the list shows."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{api}/v1/models") as answer:
            model = (await answer.json())["data"][0]["id"]
        for number in range(JOBS):
            messages = [{"role": "user", "content": f"Question {number}?"}]
            body = {"model": model, "max_tokens": 4, "messages": messages}
            line = {"url": "/v1/chat/completions", "body": body}
            async with session.post(f"{api}/v1/jobs", json=line) as answer:
                answer.raise_for_status()


async def opened(browser: Browser, api: str) -> dict[str, float]:
    """One load of the console by a browser that has nothing of it."""
    context = await browser.new_context()
    page = await context.new_page()
    await page.goto(f"{api}/console")
    await page.wait_for_selector("#job-list .row")
    listed = await page.evaluate("() => performance.now()")
    await page.wait_for_function(_PAINT)
    paint, size = await page.evaluate(_PAINT), await page.evaluate(_BYTES)
    await context.close()
    return {"paint_ms": paint, "listed_ms": listed, "bytes": size}


async def measured(api: str, runs: int) -> dict[str, Any]:
    """Every run, and the middle and the worst of them."""
    await ask(api)
    chromium = shutil.which("chromium")
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        await opened(browser, api)  # the browser itself is warm then
        found = [await opened(browser, api) for _ in range(runs)]
        await browser.close()
    figures = {
        name: {
            "p50": round(quantile((each[name] for each in found), 0.5), 1),
            "p95": round(quantile((each[name] for each in found), 0.95), 1),
        }
        for name in found[0]
    }
    return {"machine": machine(), "runs": runs, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        torpor_up(Path(folder) / "stack", "--engine", "seeded") as stack,
    ):
        publish(asyncio.run(measured(stack.at.api, options.runs)), options.json)


if __name__ == "__main__":
    main()
