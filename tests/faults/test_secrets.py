"""F29: secrets change and tokens are wrong, while the api dies now and then. Receivers of either secret go on
verifying, every refusal is the same, and no secret stands in a log, a metric or an error.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from eventing.api_key import SCOPES, RedisKeys, mint
from tests.faults.client import body
from tests.faults.conftest import Judge
from tests.faults.hooks import Hooks, hooks_of
from tests.faults.processes import System, running
from tests.faults.programs import Tuning, Zygote

pytestmark = pytest.mark.timeout(600)
CANARY = "canary-29d1-prompt"
DELIVERY = "canary-29d1-delivery-token"
TUNING = Tuning(
    puts_itself=True,
    api_env=(
        ("TORPOR_KEYS_SOURCE", "redis"),
        ("TORPOR_DELIVERY_TOKEN", DELIVERY),
        ("TORPOR_LOG_LEVEL", "DEBUG"),
        ("TORPOR_WEBHOOK_ALLOW", '["127.0.0.1"]'),
        ("TORPOR_WEBHOOK_SCHEDULE_S", "[" + ", ".join(["0.3"] * 30) + "]"),
    ),
)


@dataclass(eq=False)
class Guarded:
    """A system that asks for a key, and a receiver of its webhooks."""

    system: System
    hooks: Hooks
    key: str
    endpoint: str = ""

    async def call(self, method: str, path: str, **more: object) -> httpx.Response:
        base = self.system.client.bases[0]
        async with httpx.AsyncClient(base_url=base, headers=bearer(self.key)) as client:
            answer: httpx.Response = await client.request(method, path, **more)  # type: ignore[arg-type]
        return answer

    async def rotated(self, *, keep_old: bool) -> str:
        """The new secret of the endpoint."""
        path = f"/v1/webhook_endpoints/{self.endpoint}/rotate_secret"
        field = "keep_old_secret_active_for_24_hours"
        return str((await self.call("POST", path, json={field: keep_old})).json()["signing_secret"])

    async def jobs_told(self, name: str, number: int) -> None:
        """So many jobs, accepted, ended and told of, while the api is killed once."""
        lines = [(body(n, prompt=CANARY, tokens=4), f"{name}-{n}") for n in range(number)]
        submits = [self.system.client.submit(*line, webhook=True) for line in lines]
        jobs = list(await asyncio.gather(*submits))
        await self.system.api.restart()
        await self.system.ended(jobs, within_s=60)
        async with asyncio.timeout(60):
            while not set(jobs) <= self.hooks.told:
                await asyncio.sleep(0.05)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"} if token else {}


@pytest.fixture
async def guarded(zygote: Zygote, tmp_path: Path) -> AsyncIterator[Guarded]:
    async with running(zygote, tmp_path, TUNING) as system, hooks_of(system.history) as hooks:
        key, text = mint("default", now_s=int(time.time()), scopes=SCOPES)
        await RedisKeys(system.redis).put(key)
        system.client.headers |= bearer(text)
        made = Guarded(system, hooks, text)
        kinds = ["response.completed", "response.failed"]
        asked = {"name": "all", "url": hooks.url, "event_types": kinds}
        answer = (await made.call("POST", "/v1/webhook_endpoints", json=asked)).json()
        made.endpoint = answer["id"]
        hooks.secrets.append(answer["signing_secret"])
        yield made


async def test_f29_a_rotation_signs_with_both_secrets_until_the_old_one_is_dropped(
    guarded: Guarded, many: int, judge: Judge
) -> None:
    await guarded.jobs_told("before", many // 4)
    old = guarded.hooks.secrets[0]
    new = await guarded.rotated(keep_old=True)
    guarded.hooks.secrets.append(new)
    await guarded.jobs_told("both", many // 2)
    newest = await guarded.rotated(keep_old=False)
    guarded.hooks.secrets[:] = [newest]
    await guarded.jobs_told("after", many // 4)

    assert not any(guarded.hooks.is_last_signed_with(secret) for secret in (old, new))
    for secret in (old, new, newest, guarded.key):
        guarded.system.look_for(secret, secret.removeprefix("whsec_"))
    guarded.system.look_for(CANARY, DELIVERY)
    await judge(guarded.system, many, of="webhooks over two rotations and three kills")


ROUTES = (
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs/job_" + "0" * 24),
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/events"),
    ("GET", "/v1/webhook_endpoints"),
    ("POST", "/internal/events"),
)


async def test_f29_no_token_and_every_wrong_one_get_the_same_refusal(
    guarded: Guarded, judge: Judge
) -> None:
    key_id = guarded.key.split("_")[1]
    revoked, revoked_text = mint("default", now_s=int(time.time()), scopes=SCOPES)
    late, late_text = mint("default", now_s=0, scopes=SCOPES, expires_s=1)
    await RedisKeys(guarded.system.redis).put(late)
    wrong = {
        "none": "",
        "junk": secrets.token_urlsafe(32),
        "another key's id": f"torpor_{key_id}_{secrets.token_urlsafe(32)}",
        "unknown id": f"torpor_{secrets.token_hex(8)}_{secrets.token_urlsafe(32)}",
        "cut short": guarded.key[:-1],
        "revoked": revoked_text,
        "expired": late_text,
        "almost the delivery token": DELIVERY[:-1],
        "a token of nobody": "a.b.c",
    }
    seen: dict[tuple[str, str], set[str]] = {}
    base = guarded.system.client.bases[0]
    async with httpx.AsyncClient(base_url=base) as client:
        for method, path in ROUTES:
            for token in wrong.values():
                answer = await client.request(method, path, headers=bearer(token), json={})
                seen.setdefault((method, path), set()).add(form_of(answer))
                for secret in filter(None, wrong.values()):
                    assert secret not in answer.text
        metrics = (await guarded.call("GET", "/metrics")).text

    assert revoked.id not in metrics
    assert {len(forms) for forms in seen.values()} == {1}, seen
    assert {form.split()[0] for forms in seen.values() for form in forms} == {"401"}
    for secret in filter(None, (*wrong.values(), guarded.key, DELIVERY)):
        assert secret not in metrics
        guarded.system.look_for(secret)
    await judge(guarded.system, len(wrong) * len(ROUTES), of="refused calls")


def form_of(answer: httpx.Response) -> str:
    """All of an answer but what differs from call to call by its nature."""
    changing = {"date", "x-request-id", "torpor-request-id", "content-length", "traceparent"}
    headers = sorted(set(answer.headers.items()), key=str)
    shown = [f"{name}: {text}" for name, text in headers if name not in changing]
    ids = {text for name, text in headers if name in changing}
    text = answer.text
    for each in ids:
        text = text.replace(each, "")
    return f"{answer.status_code} {text} {shown}"
