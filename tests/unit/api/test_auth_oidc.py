"""Bearer tokens of an identity provider."""

import asyncio
import base64
import json
import time
from collections.abc import Mapping
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from api.auth.oidc import OidcRules, OidcVerifier, ProviderAway
from api.auth.principal import Scope

ISSUER, AUDIENCE = "https://id.example.com", "torpor"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


class Time:
    now_s = 0.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_ms(self) -> int:
        return 0


class Provider:
    """Answers what an identity provider publishes, and counts."""

    def __init__(self) -> None:
        self.keys = [_jwk(RSAAlgorithm, RSA_KEY, "one", "RS256")]
        self.is_down = False
        self.asked: list[str] = []

    async def fetch(self, url: str) -> Mapping[str, Any]:
        self.asked.append(url)
        if self.is_down:
            raise ProviderAway("down", 1.0)
        if url.endswith("openid-configuration"):
            return {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/keys"}
        return {"keys": self.keys}


def _jwk(algorithm: Any, key: Any, key_id: str, name: str) -> dict[str, Any]:
    return json.loads(algorithm.to_jwk(key.public_key())) | {
        "kid": key_id,
        "alg": name,
        "use": "sig",
    }


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def verifier(provider: Provider, clock: Time) -> OidcVerifier:
    return OidcVerifier(OidcRules(issuer=ISSUER, audience=AUDIENCE), clock, provider.fetch)


def token(
    key: Any = RSA_KEY, key_id: str | None = "one", algorithm: str = "RS256", **claims: Any
) -> str:
    good = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": int(time.time()) + 600,
        "sub": "u1",
        "tenant": "acme",
        "scope": "openid jobs:read jobs:write results:write",
    }
    merged = {name: value for name, value in (good | claims).items() if value is not None}
    headers = {"kid": key_id} if key_id is not None else {}
    return jwt.encode(merged, key, algorithm=algorithm, headers=headers)


async def test_a_good_token_says_tenant_and_scopes(verifier: OidcVerifier) -> None:
    principal = await verifier.verify(token())

    assert principal is not None
    assert principal.tenant == "acme"
    assert principal.scopes == {Scope.JOBS_READ, Scope.JOBS_WRITE}


def unsigned(**header: Any) -> str:
    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": 9999999999, "tenant": "acme"}
    return f"{part({'alg': 'none', 'kid': 'one'} | header)}.{part(claims)}."


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(token(STRANGER), id="signed by a stranger"),
        pytest.param(token(key_id="two"), id="an unknown key"),
        pytest.param(token(exp=int(time.time()) - 60), id="expired"),
        pytest.param(token(exp=None), id="without an end"),
        pytest.param(token(nbf=int(time.time()) + 600), id="not yet good"),
        pytest.param(token(iss="https://evil.example.com"), id="another issuer"),
        pytest.param(token(aud="other"), id="another audience"),
        pytest.param(token(aud=None), id="no audience"),
        pytest.param(token(tenant=None), id="no tenant"),
        pytest.param(token(tenant=7), id="a tenant that is no text"),
        pytest.param(token(tenant="a\nb"), id="a tenant with a line break"),
        pytest.param(token(tenant="a" * 65), id="a tenant too long"),
        pytest.param(token(scope=7), id="scopes that are none"),
        pytest.param(unsigned(), id="unsigned"),
        pytest.param(
            token("a public key is no secret, but long enough", algorithm="HS256"), id="HMAC"
        ),
        pytest.param("a.b.c", id="no token"),
        pytest.param("a" * 20_000 + ".b.c", id="too long"),
    ],
)
async def test_an_invalid_token_authenticates_no_one(verifier: OidcVerifier, bad: str) -> None:
    assert await verifier.verify(bad) is None


async def test_a_provider_may_change_its_keys(
    verifier: OidcVerifier, provider: Provider, clock: Time
) -> None:
    await verifier.verify(token())
    provider.keys.append(_jwk(ECAlgorithm, EC_KEY, "two", "ES256"))
    clock.now_s = 31

    assert await verifier.verify(token(EC_KEY, "two", "ES256"))


async def test_unknown_keys_do_not_make_us_hammer_the_provider(
    verifier: OidcVerifier, provider: Provider
) -> None:
    for number in range(50):
        await verifier.verify(token(key_id=f"guess-{number}"))

    assert len(provider.asked) == 2  # discovery and keys, once


async def test_known_keys_outlive_a_provider_that_is_down(
    verifier: OidcVerifier, provider: Provider, clock: Time
) -> None:
    await verifier.verify(token())
    provider.is_down, clock.now_s = True, 3600

    assert await verifier.verify(token())


async def test_a_key_that_the_provider_withdrew_opens_nothing_any_more(
    verifier: OidcVerifier, provider: Provider, clock: Time
) -> None:
    await verifier.verify(token())
    provider.keys, clock.now_s = [_jwk(ECAlgorithm, EC_KEY, "two", "ES256")], 601

    assert await verifier.verify(token()) is None
    assert await verifier.verify(token(EC_KEY, "two", "ES256"))


async def test_an_unknown_key_is_refused_while_the_provider_is_down(
    verifier: OidcVerifier, provider: Provider, clock: Time
) -> None:
    await verifier.verify(token())
    provider.is_down, clock.now_s = True, 3600

    assert await verifier.verify(token(STRANGER, "two")) is None


async def test_a_provider_that_is_back_is_heard_within_the_minute(
    verifier: OidcVerifier, provider: Provider, clock: Time
) -> None:
    await verifier.verify(token())
    provider.is_down, clock.now_s = True, 601
    await verifier.verify(token())
    provider.is_down, provider.keys = False, [_jwk(ECAlgorithm, EC_KEY, "two", "ES256")]
    clock.now_s = 632

    assert await verifier.verify(token()) is None


async def test_a_provider_that_is_down_is_not_asked_by_every_caller(
    verifier: OidcVerifier, provider: Provider, clock: Time
) -> None:
    provider.is_down = True
    for _ in range(20):
        with pytest.raises(ProviderAway):
            await verifier.verify(token())
    asked = len(provider.asked)
    provider.is_down, clock.now_s = False, 6

    assert asked == 1
    assert await verifier.verify(token())


async def test_a_provider_that_was_never_there_is_a_503_not_a_401(
    verifier: OidcVerifier, provider: Provider
) -> None:
    provider.is_down = True

    with pytest.raises(ProviderAway) as away:
        await verifier.verify(token())

    assert away.value.status == 503


async def test_a_token_without_a_key_id_uses_the_only_key(verifier: OidcVerifier) -> None:
    assert await verifier.verify(token(key_id=None))


async def test_a_configuration_of_another_issuer_is_not_believed(clock: Time) -> None:
    async def fetch(_: str) -> Mapping[str, Any]:
        return {"issuer": "https://evil.example.com", "jwks_uri": "https://evil.example.com/keys"}

    verifier = OidcVerifier(OidcRules(issuer=ISSUER, audience=AUDIENCE), clock, fetch)

    with pytest.raises(ProviderAway):
        await verifier.verify(token())


class Hanging(Provider):
    """Answers until `is_hanging`, and then never."""

    is_hanging = False

    async def fetch(self, url: str) -> Mapping[str, Any]:
        if self.is_hanging:
            self.asked.append(url)
            await asyncio.sleep(3600)
        return await super().fetch(url)


@pytest.fixture
def hanging() -> Hanging:
    return Hanging()


@pytest.fixture
def hung(hanging: Hanging, clock: Time) -> OidcVerifier:
    return OidcVerifier(OidcRules(issuer=ISSUER, audience=AUDIENCE), clock, hanging.fetch)


async def test_old_keys_serve_while_the_provider_hangs(
    hung: OidcVerifier, hanging: Hanging, clock: Time
) -> None:
    await hung.verify(token())
    hanging.is_hanging = True
    clock.now_s += 700
    asked = len(hanging.asked)

    async with asyncio.timeout(2):  # the question itself is given up after five seconds
        seen = [await hung.verify(token()) for _ in range(20)]

    assert all(principal is not None for principal in seen)
    assert len(hanging.asked) == asked + 1


@pytest.mark.parametrize(
    "junk",
    [
        pytest.param(token(STRANGER, "two", iss="https://evil.example.com"), id="another issuer"),
        pytest.param(token(STRANGER, "two", aud="other"), id="another audience"),
        pytest.param(token(STRANGER, "two", exp=int(time.time()) - 60), id="expired"),
        pytest.param(token(STRANGER, "two", iss=None), id="no issuer"),
    ],
)
async def test_a_token_of_another_issuer_causes_no_key_request(
    verifier: OidcVerifier, provider: Provider, clock: Time, junk: str
) -> None:
    await verifier.verify(token())
    clock.now_s += 60
    asked = len(provider.asked)

    assert await verifier.verify(junk) is None
    assert len(provider.asked) == asked


async def test_a_token_of_an_unknown_key_holds_up_no_other(
    hung: OidcVerifier, hanging: Hanging, clock: Time
) -> None:
    await hung.verify(token())
    hanging.is_hanging = True
    clock.now_s += 60
    unknown = asyncio.create_task(hung.verify(token(STRANGER, "two")))
    while len(hanging.asked) < 3:
        await asyncio.sleep(0)

    assert await hung.verify(token()) is not None
    assert not unknown.done()
    unknown.cancel()
