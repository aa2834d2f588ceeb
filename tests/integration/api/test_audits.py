"""Audits through the whole api: a job that ends is judged by the critic, and its tenant sees the verdict."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator
from redis.asyncio import Redis

from api.audit.golden import load_golden
from api.audit.make import PACKAGED
from api.settings import ApiSettings
from api.wiring.background import loops
from api.wiring.parts import make_parts
from eventing.cloudevent.event import Event
from eventing.errors import BadRequest
from eventing.job.job import JobId
from eventing.job.pipelines.audit import audit_job_id
from eventing.job.plan import StepStatus
from eventing.job.step import StepEnd, StepRun
from eventing.redis import keys
from eventing.settings import ModelCard
from eventing.store.redis_store import RedisStore
from eventing.store.steps.redis_steps import RedisStepStore
from tests.integration.api.conftest import Rig, chat_line, headers_of, rig_over
from tests.integration.api.fakes import FakeBroker, FakePredictor, chat_result

Headers = dict[str, str]
SCHEMA = Path(__file__).parents[3] / "docs/schemas/dev.torpor.inference.audited.v1.json"
PIPELINES = """
m:
  steps: [retrieve]
  audit: {critic: judge, share: 1.0, tenants: {shy: 0}}
"""


def settings_with(
    settings: ApiSettings, tmp_path: Path, pipelines: str = PIPELINES, **more: Any
) -> ApiSettings:
    file = tmp_path / "pipelines.yaml"
    file.write_text(pipelines)
    cards = (ModelCard(name="m"), ModelCard(name="judge", context_tokens=4096))
    changed = {"models": cards, "pipelines_file": file, "audit_least_waiting": 1, **more}
    return settings.model_copy(update={"keys_source": "redis"} | changed)


@pytest.fixture
async def rig(
    api_settings: ApiSettings, store: RedisStore, broker: FakeBroker, tmp_path: Path
) -> AsyncIterator[Rig]:
    async with rig_over(settings_with(api_settings, tmp_path), store, broker) as made:
        yield made


async def answered(rig: Rig, text: str, headers: dict[str, str] | None = None) -> JobId:
    """A job of `m` that ended with this answer from a passage, and whose end every listener has seen."""
    answer = await rig.client.post("/v1/jobs", json=chat_line("what?"), headers=headers or {})
    job_id = JobId(answer.json()["id"])
    steps = RedisStepStore(rig.store.redis)
    begun = await steps.begin_step(job_id, "retrieve")
    assert begun.job is not None
    sources = [{"file_id": "f", "filename": "f.txt", "text": "The sky is blue."}]
    end = StepEnd(status=StepStatus.COMPLETED, detail={"sources": sources})
    await steps.advance(StepRun.of(begun.job, "retrieve"), end)
    predictor = await FakePredictor(rig.store, job_id).start()
    await predictor.finish(chat_result(text))
    await rig.until_told()
    return job_id


async def know_critic(rig: Rig) -> None:
    """Verdicts of a flawless critic on the golden set, as if it had been asked."""
    audits = rig.parts.audits
    assert audits is not None
    version, golden = await audits.round.version("judge"), load_golden(PACKAGED)
    verdicts = {
        number: "supported" if row.is_supported else "unsupported"
        for number, row in enumerate(golden.rows)
    }
    await rig.store.redis.hset(keys.audit_golden(version), mapping={"run": "known", **verdicts})


async def judged(rig: Rig, job_id: JobId, said: str) -> None:
    """Ask the critic about what waits, and have it say this of one job."""
    audits = rig.parts.audits
    assert audits is not None
    await audits.round.ask("judge")
    critic = await FakePredictor(rig.store, audit_job_id(job_id)).start()
    await critic.finish(chat_result(said))
    await rig.until_told()


async def listed(rig: Rig, headers: dict[str, str]) -> list[dict[str, Any]]:
    return list((await rig.client.get("/v1/audits", headers=headers)).json()["data"])


async def test_a_tenant_sees_the_verdicts_on_its_own_answers_and_on_no_others(
    rig: Rig, acme: Headers, other: Headers
) -> None:
    await know_critic(rig)
    job_id = await answered(rig, "The sky is green.", acme)
    (waiting,) = await listed(rig, acme)
    assert (waiting["job"], waiting["status"], waiting["verdict"]) == (job_id, "queued", None)

    await judged(rig, job_id, "VERDICT: UNSUPPORTED")

    (shown,) = await listed(rig, acme)
    path = f"/v1/audits/{shown['id']}"
    assert (shown["job"], shown["verdict"], shown["status"]) == (job_id, "unsupported", "completed")
    assert (shown["model"], shown["critic"], shown["reason"]) == ("m", "judge", None)
    assert shown == (await rig.client.get(path, headers=acme)).json()
    assert await listed(rig, other) == []
    assert (await rig.client.get(path, headers=other)).status_code == 404
    ids = [each["id"] for each in (await rig.client.get("/v1/jobs", headers=acme)).json()["data"]]
    assert ids == [job_id]  # the critic's job is nobody's


async def test_audits_are_listed_in_pages_newest_first(rig: Rig, acme: Headers) -> None:
    jobs = [await answered(rig, f"answer {number}", acme) for number in range(3)]

    first = (await rig.client.get("/v1/audits?limit=2", headers=acme)).json()
    path = f"/v1/audits?limit=2&after={first['last_id']}"
    second = (await rig.client.get(path, headers=acme)).json()
    upwards = (await rig.client.get("/v1/audits?order=asc", headers=acme)).json()

    assert [each["job"] for each in first["data"] + second["data"]] == jobs[::-1]
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert [each["job"] for each in upwards["data"]] == jobs
    for after in ("audit_" + "0" * 24, "x"):
        wrong = await rig.client.get(f"/v1/audits?after={after}", headers=acme)
        assert (wrong.status_code, wrong.json()["field"]) == (400, "after")


async def test_the_event_of_a_verdict_keeps_its_schema(
    rig: Rig, acme: Headers, broker: FakeBroker
) -> None:
    await know_critic(rig)
    job_id = await answered(rig, "The sky is blue.", acme)

    await judged(rig, job_id, "VERDICT: SUPPORTED")

    (event,) = [each for each in broker.events if each.type.endswith(".audited.v1")]
    Draft202012Validator(orjson.loads(SCHEMA.read_bytes())).validate(structured(event))
    assert (event.subject, event.extensions["tenant"]) == (job_id, "acme")


async def test_a_tenant_that_opted_out_is_not_audited(rig: Rig, redis: Redis) -> None:
    shy = await headers_of(redis, "shy")

    await answered(rig, "The sky is green.", shy)

    assert await listed(rig, shy) == []
    assert await redis.exists(keys.audits_waiting("judge")) == 0


async def test_the_operator_sees_rate_and_interval_in_metrics_and_usage(
    rig: Rig, redis: Redis, acme: Headers
) -> None:
    await know_critic(rig)
    for number in range(4):
        job_id = await answered(rig, f"It is so, {number}.", acme)
        await judged(rig, job_id, "VERDICT: UNSUPPORTED" if number == 0 else "VERDICT: SUPPORTED")
    operator = await headers_of(redis, "ops", "metrics:read")

    usage = (await rig.client.get("/v1/usage", headers=operator)).json()

    shown = usage["audits"]["m"]
    assert (shown["critic"], shown["audited_jobs"], shown["kappa"]) == ("judge", 4, 1.0)
    assert 0 < shown["low"] < shown["rate"] < shown["high"] < 1
    figures = rig.parts.audits.figures if rig.parts.audits else None
    assert figures is not None
    assert await figures.refresh()
    text = (await rig.client.get("/metrics", headers=operator)).text
    rate = re.search(r'^torpor_hallucination_rate\{model="m"\} (\S+)$', text, re.MULTILINE)
    assert rate is not None
    assert float(rate[1]) == pytest.approx(shown["rate"], abs=1e-4)
    assert re.search(r'^torpor_critic_kappa\{critic="judge"\} 1.0$', text, re.MULTILINE)


async def test_without_audits_there_is_nothing_that_listens_or_asks(
    api_settings: ApiSettings, redis: Redis
) -> None:
    parts = make_parts(api_settings, redis, FakeBroker())  # type: ignore[arg-type]

    assert parts.audits is None
    assert not [name for name in loops(parts) if name.startswith("audit")]
    await parts.streams.close()


@pytest.mark.parametrize(
    ("pipelines", "changes", "said"),
    [
        pytest.param(
            "m: {audit: {critic: none}}", {}, "none of the models that are served", id="no critic"
        ),
        pytest.param(
            PIPELINES,
            {"audit_golden_file": Path("/none.jsonl")},
            "TORPOR_AUDIT_GOLDEN_FILE: cannot read",
            id="no golden set",
        ),
    ],
)
async def test_an_api_does_not_start_with_audits_that_can_not_be(
    api_settings: ApiSettings,
    redis: Redis,
    tmp_path: Path,
    pipelines: str,
    changes: dict[str, Any],
    said: str,
) -> None:
    settings = settings_with(api_settings, tmp_path, pipelines, **changes)

    with pytest.raises(BadRequest, match=said):
        make_parts(settings, redis, FakeBroker())  # type: ignore[arg-type]


async def test_no_key_is_made_for_a_tenant_of_torpors_own(redis: Redis) -> None:
    with pytest.raises(BadRequest, match="must not begin with /torpor/"):
        await headers_of(redis, "/torpor/audit")


def structured(event: Event) -> dict[str, Any]:
    """The event as one JSON object."""
    return {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "subject": event.subject,
        "time": event.time,
        "datacontenttype": event.datacontenttype,
        **event.extensions,
        "data": orjson.loads(event.data),
    }
