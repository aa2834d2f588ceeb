"""The console in a real browser (Debian's chromium, driven by Playwright).

Skips itself by name without the browser: `apt-get install chromium`.
"""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from eventing.api_key import RedisKeys, mint
from eventing.job.job import JobId
from eventing.job.plan import Plan, PlannedStep
from eventing.replica import ReplicaDirectory
from eventing.settings import ModelCard
from eventing.store.redis_store import RedisStore
from predictor.engine.upstream.provider import CallResult, Report, Reservation, SharedProvider
from predictor.engine.upstream.rate_headers import RateLimits
from tests.integration.api.api_with_jobs import ApiWithJobs, api_with_jobs, settings_for
from tests.integration.api.console import (
    Page,
    chromium,
    console,
    expect,
    go,
    in_chromium,
    submit_job,
)
from tests.integration.api.fakes import FakePredictor, chat_result
from tests.integration.api.receiver import receiving
from tests.integration.api.test_console_files import rejected

pytestmark = in_chromium
LONG = re.compile(r"^\d+(\.\d)? m?s$")


@pytest.fixture
async def api(redis_url: str, store: RedisStore, redis: Redis) -> AsyncIterator[ApiWithJobs]:
    async with api_with_jobs(
        settings_for(redis_url, models=(ModelCard(name="m", context_tokens=4096),)), store
    ) as made:
        yield made


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    async with chromium() as made:
        yield made


@pytest.fixture
async def page(api: ApiWithJobs, browser: Any) -> AsyncIterator[Page]:
    async with console(api, browser) as made:
        yield made


async def test_a_job_is_written_followed_and_answered_by_keyboard(
    api: ApiWithJobs, page: Page
) -> None:
    job_id = await submit_job(page, "Why do hummingbirds sleep?")
    await expect(page.locator("#detail-state")).to_have_text("queued")
    predictor = await FakePredictor(api.store, job_id).start()

    await predictor.chat("They ")
    await expect(page.locator("#detail-output")).to_have_text("They")
    await predictor.chat("save energy.")
    await expect(page.locator("#detail-output")).to_have_text("They save energy.")
    await predictor.finish(chat_result("They save energy."))

    await expect(page.locator("#detail-state")).to_have_text("completed")
    await expect(page.locator("#job-list .state").first).to_have_text("completed")


async def test_a_models_output_is_shown_as_text_never_as_markup(
    api: ApiWithJobs, page: Page
) -> None:
    markup = '<img src=x onerror="document.title=1"><script>document.title=1</script>'
    job_id = await submit_job(page, markup)
    predictor = await FakePredictor(api.store, job_id).start()

    await predictor.chat(markup)

    await expect(page.locator("#detail-output")).to_have_text(markup)
    await expect(page.locator("#detail-prompt")).to_have_text(markup)
    await expect(page.locator("#job-list .prompt")).to_have_text(markup)
    assert await page.title() == "Torpor console"
    assert await page.locator("main img").count() == 0


async def test_text_of_other_origins_is_shown_as_text_too(api: ApiWithJobs, page: Page) -> None:
    """Reasoning, refusals, errors of a dead letter, a webhook's host, a replica's name."""
    markup = "<img src=x onerror=document.title=1>"
    directory = ReplicaDirectory(api.store.redis)
    await directory.report("m", markup, markup, {markup: 1.0}, device=markup)
    job_id = await submit_job(page, "hi")
    predictor = await FakePredictor(api.store, job_id).start()
    await predictor.say({"index": 0, "delta": {"reasoning_content": markup}})
    await expect(page.locator("#detail-thinking")).to_have_text(markup)

    await predictor.fail(markup, markup)

    await expect(page.locator("#detail-life")).to_contain_text("failed, in all")
    await go(page, "#/dead")
    await expect(page.locator("#dead-list")).to_contain_text(f"{markup}: {markup}")
    await go(page, "#/models")
    await expect(page.locator(".replica .name")).to_contain_text(markup)
    assert await page.title() == "Torpor console"
    assert await page.locator("main img").count() == 0


async def test_nothing_of_the_page_is_inline_and_nothing_inline_would_run(
    api: ApiWithJobs, browser: Any
) -> None:
    page = await browser.new_page()
    await page.goto(f"{api.url}/console")
    inline = await page.evaluate(
        "() => [...document.querySelectorAll('*')].filter((n) => n.matches('script:not([src]), "
        "style') || [...n.attributes].some((a) => a.name.startsWith('on'))).length"
    )
    is_held = await page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
        " document.body.append(s); return window.ran === undefined; }"
    )

    await page.close()
    assert inline == 0
    assert is_held


async def test_thinking_stands_apart_from_the_answer(api: ApiWithJobs, page: Page) -> None:
    predictor = await FakePredictor(api.store, await submit_job(page, "2+2?")).start()

    await predictor.say({"index": 0, "delta": {"reasoning_content": "hmm"}})
    await predictor.chat("four")

    await expect(page.locator("#thinking")).to_be_visible()
    await expect(page.locator("#detail-thinking")).to_have_text("hmm")
    await expect(page.locator("#detail-output")).to_have_text("four")


async def test_an_answer_that_starts_over_is_wiped(api: ApiWithJobs, page: Page) -> None:
    job_id = await submit_job(page, "hi")
    predictor = await FakePredictor(api.store, job_id).start()
    await predictor.chat("lost")
    await expect(page.locator("#detail-output")).to_have_text("lost")
    await api.store.redis.hset(f"torpor:{{{job_id}}}", "lease_until_ms", 1)

    second = await FakePredictor(api.store, job_id).start(can_resume=False)
    await second.chat("new")

    await expect(page.locator("#detail-output")).to_have_text("new")
    await expect(page.locator("#detail-log")).to_contain_text("starts over")


async def test_a_job_is_cancelled_with_a_key(api: ApiWithJobs, page: Page) -> None:
    job_id = await submit_job(page, "never mind")
    await expect(page.locator("#cancel")).to_be_visible()
    await page.keyboard.press("Escape")

    await page.keyboard.press("c")

    await expect(page.locator("#detail-state")).to_have_text("cancelled")
    job = await api.store.get(JobId(job_id))
    assert job is not None
    assert job.state == "cancelled"


async def test_jobs_are_walked_with_j_and_k(api: ApiWithJobs, page: Page) -> None:
    jobs = [await api.submit(str(n)) for n in range(3)]
    await expect(page.locator("#job-list .row")).to_have_count(3)
    await page.keyboard.press("Escape")

    await page.keyboard.press("j")
    await expect(page.locator("#detail-title")).to_have_text(jobs[2])
    await page.keyboard.press("j")
    await expect(page.locator("#detail-title")).to_have_text(jobs[1])
    await page.keyboard.press("k")
    await expect(page.locator("#detail-title")).to_have_text(jobs[2])


async def test_a_dead_letter_is_redriven(api: ApiWithJobs, page: Page) -> None:
    job_id = await api.submit("poison")
    await (await FakePredictor(api.store, job_id).start()).fail("boom", "it broke")
    await page.keyboard.press("d")
    await page.reload()
    await expect(page.locator("#dead-count")).to_have_text("1")
    await expect(page.locator("#dead-list")).to_contain_text("boom: it broke")

    await page.get_by_role("button", name=f"Redrive {job_id}").click()

    await expect(page.locator("#detail-state")).to_have_text("queued")
    await go(page, "#/dead")
    await expect(page.locator("#dead-none")).to_be_visible()
    assert [event.subject for event in api.broker.events] == [job_id, job_id]


async def test_redriving_all_ends_and_says_what_was_left(api: ApiWithJobs, page: Page) -> None:
    job_id = await api.submit("poison")
    await (await FakePredictor(api.store, job_id).start()).fail("boom")
    for n in range(101):
        await rejected(api, n)

    await page.keyboard.press("d")
    await page.locator("#redrive-all").click()

    await expect(page.locator("#alert")).to_contain_text("101 not redriven")
    assert [event.subject for event in api.broker.events] == [job_id, job_id]


async def test_a_dead_letter_is_discarded_only_after_a_question(
    api: ApiWithJobs, page: Page
) -> None:
    job_id = await api.submit("poison")
    await (await FakePredictor(api.store, job_id).start()).fail("boom")
    await page.keyboard.press("d")
    button = page.get_by_role("button", name=f"Discard {job_id}")
    await expect(button).to_be_visible()

    await button.click()
    await page.keyboard.press("Enter")  # the safe answer has the focus
    await expect(page.locator("#ask")).to_be_hidden()
    assert await api.store.get(JobId(job_id)) is not None
    await button.click()
    await page.locator("#ask-yes").click()

    await expect(page.locator("#dead-none")).to_be_visible()
    assert await api.store.get(JobId(job_id)) is None


async def test_a_jobs_timeline_ends_with_its_webhook(api: ApiWithJobs, page: Page) -> None:
    async with receiving() as receiver:
        job_id = await api.submit("tell me", webhook={"url": receiver.url})
        await page.locator(f'[data-id="{job_id}"] .row').click()
        life = page.locator("#detail-life")
        await expect(life.locator('[data-step="queued"]')).to_be_visible()

        await api.answer(job_id)

        await expect(life.locator('[data-step="attempt"]')).to_contain_text("attempt 1: completed")
        await expect(life.locator('[data-step="completed"] .long')).to_have_text(LONG)
        sent = life.locator('[data-step="delivery"]')
        await expect(sent.locator(".name")).to_have_text("webhook to 127.0.0.1, try 1: 204")
        await expect(sent.locator(".long")).to_have_text(LONG)


async def test_a_cold_start_shows_its_phases(api: ApiWithJobs, page: Page, redis: Redis) -> None:
    await expect(page.locator(".strip")).to_contain_text("m · asleep")
    await go(page, "#/models")
    await expect(page.locator("#model-list")).to_contain_text("Asleep")
    directory = ReplicaDirectory(redis)

    await directory.report("m", "predictor-1", "weights", {"import": 3.2}, 1500)

    bar = page.locator(".phases")
    await expect(bar).to_have_attribute("aria-label", re.compile("import 3.20 s, now weights"))
    done = {"import": 3.2, "weights": 1.9}
    await directory.report("m", "predictor-1", "ready", done, device="GPU NVIDIA H200")
    await expect(bar).to_have_attribute("aria-label", "cold start: import 3.20 s, weights 1.90 s")
    await expect(page.locator(".replica .name")).to_have_text(
        "predictor-1 · ready · GPU NVIDIA H200"
    )


@pytest.mark.parametrize("scheme", ["dark", "light"])
async def test_the_theme_follows_the_system_and_can_be_switched(
    api: ApiWithJobs, browser: Any, scheme: str
) -> None:
    context = await browser.new_context(color_scheme=scheme)
    page = await context.new_page()
    await page.goto(f"{api.url}/console")
    body = page.locator("body")
    dark, light = "rgb(20, 23, 26)", "rgb(250, 250, 247)"
    own, other = (dark, light) if scheme == "dark" else (light, dark)

    await expect(body).to_have_css("background-color", own)
    await page.click("#theme")
    await expect(body).to_have_css("background-color", other)
    await page.reload()
    await expect(body).to_have_css("background-color", other)
    await context.close()


async def test_a_key_is_asked_for_and_kept_in_the_tab(
    redis_url: str, store: RedisStore, redis: Redis, browser: Any
) -> None:
    key, text = mint("acme", now_s=0)
    await RedisKeys(redis).put(key)
    async with api_with_jobs(settings_for(redis_url, keys_source="redis"), store) as api:
        page = await browser.new_page()
        await page.goto(f"{api.url}/console")
        await expect(page.locator("#key-dialog")).to_be_visible()

        await page.locator("#key").fill(text)
        await page.keyboard.press("Enter")

        await expect(page.locator("#pulse")).to_have_text("live")
        assert text not in page.url
        assert await page.evaluate("localStorage.length") == 0
        await page.close()


async def test_everything_that_can_be_clicked_can_be_reached_by_tab_and_has_a_name(
    api: ApiWithJobs, page: Page
) -> None:
    job_id = await api.submit("one")
    await go(page, f"#/jobs/{job_id}")
    await expect(page.locator("#job-list .row")).to_have_count(1)
    await expect(page.locator("#detail-state")).to_have_text("queued")

    reached: set[str] = set()
    for _ in range(40):
        await page.keyboard.press("Tab")
        reached.add(
            await page.evaluate(
                "() => document.activeElement.id || document.activeElement.className"
            )
        )

    assert {"key-open", "theme", "search", "filter", "row", "edit", "copy"} <= reached
    nameless = await page.evaluate(
        "() => [...document.querySelectorAll('button, input, select, textarea')]"
        ".filter((n) => !(n.labels?.length || n.textContent.trim() || n.ariaLabel)).length"
    )
    assert nameless == 0


async def test_a_narrow_window_does_not_scroll_sideways(api: ApiWithJobs, browser: Any) -> None:
    job_id = await api.submit("a prompt of " + "x" * 400)
    await (await FakePredictor(api.store, job_id).start()).fail("boom", "y" * 400)
    page = await browser.new_page(viewport={"width": 360, "height": 700})
    await page.goto(f"{api.url}/console")
    await expect(page.locator("#pulse")).to_have_text("live")

    wide = {}
    for where in (
        "jobs",
        f"jobs/{job_id}",
        f"play?from={job_id}",
        "models",
        "dead",
        "batches",
        "files",
        "webhooks",
        "usage",
        "keys",
    ):
        await go(page, f"#/{where}")
        await expect(page.locator("#page")).to_have_class(
            re.compile(f"page-{re.split('[/?]', where)[0]}")
        )
        wide[where] = await page.evaluate("() => document.documentElement.scrollWidth")

    await page.close()
    assert {where: width for where, width in wide.items() if width > 360} == {}


async def test_the_console_leads_to_the_calls_where_a_key_can_be_given(page: Page) -> None:
    await page.get_by_role("link", name="API").click()
    call = page.locator("#operations-jobs-submit_job")
    await call.get_by_role("button").first.click()

    await expect(page.get_by_role("button", name="Authorize").first).to_be_visible()
    await expect(call.get_by_text("hummingbirds").first).to_be_visible()


async def test_steps_before_the_thought_stand_in_the_timeline(
    api: ApiWithJobs, page: Page, redis: Redis
) -> None:
    job_id = await api.submit("tell me")
    job = await api.store.get(JobId(job_id))
    assert job is not None
    at = job.created_ms
    lines = [
        f'retrieve completed {at + 5} {at + 45} 1 {{"hits": 3, "source": "<b>x</b>"}}',
        f"cache in_progress {at + 45} 0 1 {{}}",
    ]
    plan = Plan(steps=(PlannedStep(name="retrieve"), PlannedStep(name="cache")))
    record = {"plan": plan.to_json(), "pipeline": "\n".join(lines)}
    await redis.hset(f"torpor:{{{job_id}}}", mapping=record)

    await go(page, f"#/jobs/{job_id}")

    steps = page.locator('#detail-life [data-step="step"]')
    await expect(steps.first.locator(".name")).to_have_text(
        "step retrieve: completed (hits 3, source <b>x</b>)"
    )
    await expect(steps.first.locator(".long")).to_have_text("40 ms")
    await expect(steps.nth(1).locator(".name")).to_have_text("step cache: in progress")


async def test_steps_after_the_thought_who_answered_and_answers_asked_again_are_shown(
    api: ApiWithJobs, page: Page, redis: Redis
) -> None:
    job_id = await api.submit("tell me")
    job = await api.store.get(JobId(job_id))
    assert job is not None
    at = job.created_ms
    routed = {"asked": "auto", "answered": "small", "reason": "<i>plain</i>", "rules": ["plain"]}
    checked = {"valid": False, "failed": ["format", "rules"], "asked_again": 1}
    lines = [
        f"route completed {at + 5} {at + 6} 1 {json.dumps(routed)}",
        f"validate-output completed {at + 90} {at + 95} 1 {json.dumps(checked)}",
    ]
    plan = Plan(steps=(PlannedStep(name="route"), PlannedStep(name="validate-output")))
    history = [
        {
            "attempt": 1,
            "owner": "a",
            "started_ms": at + 10,
            "ended_ms": at + 40,
            "outcome": "rejected",
        },
        {
            "attempt": 2,
            "owner": "a",
            "started_ms": at + 50,
            "ended_ms": at + 90,
            "outcome": "completed",
        },
    ]
    record = {
        "plan": plan.to_json(),
        "pipeline": "\n".join(lines),
        "history": json.dumps(history),
        "state": "incomplete",
        "incomplete": "content_filter",
        "finished_ms": at + 95,
    }
    await redis.hset(f"torpor:{{{job_id}}}", mapping=record)

    await go(page, f"#/jobs/{job_id}")

    await expect(page.locator("#detail-state")).to_have_text("incomplete: content filter")
    facts = page.locator("#detail-facts dd")
    await expect(facts.get_by_text("small", exact=True)).to_be_visible()
    await expect(facts.get_by_text("<i>plain</i>", exact=True)).to_be_visible()
    steps = page.locator('#detail-life [data-step="step"] .name')
    await expect(steps.nth(1)).to_have_text(
        "step validate-output: completed (valid false, failed format,rules, asked again 1)"
    )
    attempts = page.locator('#detail-life [data-step="attempt"] .name')
    await expect(attempts.first).to_have_text("attempt 1: not valid, asked again")
    await expect(attempts.nth(1)).to_have_text("attempt 2: completed")


async def test_a_models_providers_are_shown_with_their_breakers_and_limits(
    api: ApiWithJobs, page: Page, redis: Redis
) -> None:
    near = SharedProvider(redis, url="https://near.example.com/v1", model="<b>large</b>")
    far = SharedProvider(redis, url="https://far.example.com/v1", model="theirs")
    limits = RateLimits(request_limit=500, requests_left=100)
    for state in (near, far):
        await state.announce("m")
        right = await state.reserve(1, 1, "")
        assert isinstance(right, Reservation)
        await state.settle(right, Report(result=CallResult.OK, limits=limits))
    for _ in range(5):
        right = await far.reserve(1, 1, "")
        assert isinstance(right, Reservation)
        await far.settle(right, Report(result=CallResult.UNREACHABLE))

    await go(page, "#/models")

    rows = page.locator("#model-list .provider")
    await expect(rows).to_have_count(2)
    opened = page.locator('#model-list .provider[data-breaker="open"]')
    await expect(opened.locator(".name")).to_have_text("theirs at far.example.com")
    closed = page.locator('#model-list .provider[data-breaker="closed"]')
    await expect(closed.locator(".name")).to_have_text("<b>large</b> at near.example.com")
    await expect(closed).to_contain_text(
        re.compile(r"breaker closed, \d+ of 500 requests a minute left")
    )
