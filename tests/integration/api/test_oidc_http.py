"""Tokens of an identity provider that is really asked over HTTP: its keys change, it goes away, it
answers nonsense.
"""

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from api.auth import oidc
from api.auth.oidc import OidcRules, OidcVerifier, ProviderAway
from eventing.clock import SystemClock
from eventing.store.redis_store import RedisStore
from tests.integration.api.api_with_jobs import api_with_jobs, settings_for
from tests.redis_server import free_port
from tests.time_limits import HANG_S

OLD, NEW = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
AUDIENCE = "torpor"


@dataclass
class Provider:
    """`answer` takes the place of the keys when it is set."""

    url: str
    keys: dict[str, ec.EllipticCurvePrivateKey] = field(default_factory=lambda: {"old": OLD})
    answer: Callable[[], web.Response] | None = None
    asked: int = 0

    async def configuration(self, _: web.Request) -> web.Response:
        return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}/keys"})

    async def jwks(self, _: web.Request) -> web.Response:
        self.asked += 1
        if self.answer is not None:
            return self.answer()  # one of its own: a response that is sent twice hangs
        keys = [
            json.loads(ECAlgorithm.to_jwk(key.public_key())) | {"kid": name, "alg": "ES256"}
            for name, key in self.keys.items()
        ]
        return web.json_response({"keys": keys})

    def token(
        self, key: Any = OLD, name: str = "old", algorithm: str = "ES256", **claims: Any
    ) -> str:
        good = {
            "iss": self.url,
            "aud": AUDIENCE,
            "exp": int(time.time()) + 60,
            "tenant": "acme",
            "scope": "jobs:read",
        }
        return jwt.encode(good | claims, key, algorithm=algorithm, headers={"kid": name})


@asynccontextmanager
async def serving(provider: Provider) -> AsyncIterator[None]:
    app = web.Application()
    app.router.add_get("/.well-known/openid-configuration", provider.configuration)
    app.router.add_get("/keys", provider.jwks)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(provider.url.rsplit(":", 1)[1])).start()
    try:
        yield
    finally:
        await runner.cleanup()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that is slow is `test_auth_oidc`'s subject; here it answers at once, or this process stands still."""
    for name in ("_ASKING_S", "_GLANCE_S"):
        monkeypatch.setattr(oidc, name, HANG_S)
    monkeypatch.setattr(oidc, "_TIMEOUT", aiohttp.ClientTimeout(total=HANG_S))


@pytest.fixture
def provider() -> Provider:
    return Provider(f"http://127.0.0.1:{free_port()}")


class Clock(SystemClock):
    """Time that can be put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.ahead_s


def verifier_of(provider: Provider, clock: Clock) -> OidcVerifier:
    return OidcVerifier(OidcRules(issuer=provider.url, audience=AUDIENCE), clock)


async def test_the_api_takes_what_the_provider_signed_and_nothing_else(
    provider: Provider, redis_url: str, store: RedisStore
) -> None:
    settings = settings_for(redis_url, oidc_issuer=provider.url, oidc_audience=AUDIENCE)
    none = jwt.encode({"iss": provider.url, "aud": AUDIENCE, "exp": 9**10}, None, "none")
    bad = {
        "another's signature": provider.token(NEW),
        "another audience": provider.token(aud="other"),
        "another issuer": provider.token(iss="https://evil.example"),
        "expired": provider.token(exp=int(time.time()) - 60),
        "no signature": none,
        "a shared secret": provider.token("x" * 32, algorithm="HS256"),
    }
    async with serving(provider), api_with_jobs(settings, store) as api:

        async def status(token: str, method: str = "GET") -> int:
            headers = {"authorization": f"Bearer {token}"}
            return (await api.client.request(method, "/v1/jobs", headers=headers)).status_code

        good = [await status(provider.token()), await status(provider.token(), "POST")]
        refused = {name: await status(token) for name, token in bad.items()}

    assert good == [200, 403]
    assert set(refused.values()) == {401}, refused


async def test_a_provider_that_never_answered_makes_every_token_a_503(
    provider: Provider, redis_url: str, store: RedisStore
) -> None:
    settings = settings_for(redis_url, oidc_issuer=provider.url, oidc_audience=AUDIENCE)
    headers = {"authorization": f"Bearer {provider.token()}"}
    async with api_with_jobs(settings, store) as api:
        answer = await api.client.get("/v1/jobs", headers=headers)

    assert answer.status_code == 503
    assert answer.json()["code"] == "identity_provider_unavailable"
    assert answer.headers["retry-after"]


async def test_keys_that_rotate_are_followed_and_old_ones_forgotten(provider: Provider) -> None:
    clock = Clock()
    verifier = verifier_of(provider, clock)
    async with serving(provider):
        assert await verifier.verify(provider.token())
        provider.keys["new"] = NEW
        clock.ahead_s += 31
        both = [
            await verifier.verify(provider.token(NEW, "new")),
            await verifier.verify(provider.token()),
        ]
        del provider.keys["old"]
        clock.ahead_s += 601
        new = await verifier.verify(provider.token(NEW, "new"))
        old = await verifier.verify(provider.token())

    assert None not in (*both, new)
    assert old is None


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda: web.Response(status=500), id="broken"),
        pytest.param(lambda: web.Response(text="<html>"), id="a page"),
        pytest.param(lambda: web.json_response([1]), id="a list"),
        pytest.param(lambda: web.json_response({"keys": []}), id="no keys"),
        pytest.param(lambda: web.json_response({"keys": [{"kty": "oct"}]}), id="no public key"),
        pytest.param(lambda: web.json_response({"keys": 7}), id="keys that are none"),
        pytest.param(lambda: web.json_response({"keys": [7]}), id="a key that is none"),
        pytest.param(lambda: web.Response(status=302, headers={"location": "/x"}), id="a redirect"),
    ],
)
async def test_nonsense_from_the_provider_opens_nothing_and_takes_no_key_away(
    provider: Provider, answer: Callable[[], web.Response]
) -> None:
    clock = Clock()
    verifier, fresh = verifier_of(provider, clock), verifier_of(provider, clock)
    async with serving(provider):
        assert await verifier.verify(provider.token())
        provider.answer = answer
        clock.ahead_s += 601

        known = await verifier.verify(provider.token())
        with pytest.raises(ProviderAway):
            await fresh.verify(provider.token())

    assert known is not None
