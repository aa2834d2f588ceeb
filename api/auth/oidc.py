"""Bearer tokens of an identity provider (OIDC): checks the signature with its published keys, then the claims.

Called by `api.auth.authenticator`. Must not know API keys or routes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import jwt
import orjson
import structlog
from yarl import URL

from api.auth.authenticator import scopes_of
from api.auth.principal import Principal
from eventing.api_key import check_tenant
from eventing.clock import Clock
from eventing.errors import BadRequest, Unavailable
from eventing.process.address import is_inside

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "ES256", "ES384", "EdDSA")
"""Asymmetric algorithms only: with HS256 an attacker could use the public key as the shared secret."""
_FRESH_S: Final = 600.0
_AGAIN_S: Final = 30.0
"""Least time between two requests for the provider's keys after an unknown key id or a failed request."""
_AT_FIRST_S: Final = 5.0
"""The same while there are no keys yet; calls in between are refused at once."""
_LEEWAY_S: Final = 30
_LONGEST_TOKEN: Final = 16 * 1024
_LARGEST_DOCUMENT: Final = 1024 * 1024
_NONSENSE: Final = (AttributeError, KeyError, TypeError, ValueError)
"""What PyJWT raises for a key set whose keys lack required fields."""
_REQUIRED: Final = ["exp", "iss", "aud"]
_ASKING_S: Final = 5.0
"""Time limit for discovery and keys together."""
_GLANCE_S: Final = 0.2
"""How long a call with outdated keys waits for new ones, so that with a fast provider a withdrawn key stops working
at once.
"""
_TIMEOUT: Final = aiohttp.ClientTimeout(total=5)
_log = structlog.get_logger()

Fetch = Callable[[str], Awaitable[Mapping[str, Any]]]


class ProviderAway(Unavailable):
    """The identity provider does not answer, and none of its keys are known yet."""

    code = "identity_provider_unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcRules:
    """Which tokens are accepted. `jwks_url` is discovered when it is empty."""

    issuer: str
    audience: str
    jwks_url: str = ""
    tenant_claim: str = "tenant"
    scope_claim: str = "scope"


async def fetch_json(url: str) -> Mapping[str, Any]:
    """The JSON object at `url`, by the environment's proxy when it is outside. Raises `ProviderAway`."""
    is_outside = not is_inside(URL(url).host or "")
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=is_outside) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            raw = await answer.content.read(_LARGEST_DOCUMENT)
            document = orjson.loads(raw) if answer.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, OSError, orjson.JSONDecodeError) as error:
        raise ProviderAway("the identity provider does not answer", 5.0) from error
    if not isinstance(document, dict):
        raise ProviderAway("the identity provider's answer is not a JSON object", 5.0)
    return document


class OidcVerifier:
    """A `TokenVerifier`. The provider's keys are refreshed after ten minutes; the old ones serve meanwhile."""

    def __init__(self, rules: OidcRules, clock: Clock, fetch: Fetch = fetch_json) -> None:
        self._rules = rules
        self._clock = clock
        self._fetch = fetch
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_s = float("-inf")
        self._asked_s = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None

    async def verify(self, token: str) -> Principal | None:
        if len(token) > _LONGEST_TOKEN:
            return None
        try:
            key_id = str(jwt.get_unverified_header(token).get("kid", ""))
            key = await self._key(key_id, token)
            claims = self._claims(token, key) if key is not None else None
        except jwt.PyJWTError:
            return None
        return self._principal(claims) if claims is not None else None

    def _claims(self, token: str, key: jwt.PyJWK) -> Mapping[str, Any]:
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=list(ALGORITHMS),
            audience=self._rules.audience,
            issuer=self._rules.issuer,
            leeway=_LEEWAY_S,
            options={"require": _REQUIRED},
        )
        return claims

    def _principal(self, claims: Mapping[str, Any]) -> Principal | None:
        try:
            tenant = check_tenant(claims.get(self._rules.tenant_claim))
        except BadRequest:
            return None
        named = claims.get(self._rules.scope_claim, "")
        names = named.split() if isinstance(named, str) else named
        if not isinstance(names, list):
            return None
        scopes = scopes_of(tuple(str(name) for name in names))
        return Principal(tenant=tenant, scopes=scopes, key_id=str(claims.get("sub", "")))

    async def _key(self, key_id: str, token: str) -> jwt.PyJWK | None:
        """The provider's key with that id. Known keys serve while they are refreshed. Only a token with an unknown
        key waits for the refresh, and only if its claims match this api.
        """
        now_s = self._clock.monotonic_s()
        if (key := self._known(key_id)) is not None:
            is_stale = now_s - self._fetched_s > _FRESH_S
            if is_stale and (asking := self._start_refresh(now_s)) is not None:
                await asyncio.wait({asking}, timeout=_GLANCE_S)
                return self._known(key_id)
            return key
        self._check_claims(token)
        self._start_refresh(now_s)
        if self._refreshing is not None:
            await asyncio.shield(self._refreshing)
        if not self._keys:
            raise ProviderAway("the identity provider does not answer", _AT_FIRST_S)
        return self._known(key_id)

    def _known(self, key_id: str) -> jwt.PyJWK | None:
        if not key_id and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)

    def _check_claims(self, token: str) -> None:
        """Raises `PyJWTError` for a token whose claims do not match, whatever its signature: junk must not cause a
        refresh.
        """
        jwt.decode(
            token,
            audience=self._rules.audience,
            issuer=self._rules.issuer,
            leeway=_LEEWAY_S,
            options={
                "require": _REQUIRED,
                "verify_signature": False,
                "verify_exp": True,
                "verify_iss": True,
                "verify_aud": True,
            },
        )

    def _start_refresh(self, now_s: float) -> asyncio.Task[None] | None:
        """Fetch the provider's keys in the background, one request at a time and not too often; the task if it is
        new.
        """
        if self._refreshing is not None and not self._refreshing.done():
            return None
        self._refreshing = None
        if now_s - self._asked_s > (_AGAIN_S if self._keys else _AT_FIRST_S):
            self._asked_s = now_s
            self._refreshing = asyncio.create_task(self._refresh())  # ends within `_ASKING_S`
        return self._refreshing

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(_ASKING_S):
                url = self._rules.jwks_url or await self._discovered()
                found = jwt.PyJWKSet.from_dict(dict(await self._fetch(url)))
        except (ProviderAway, jwt.PyJWTError, TimeoutError, *_NONSENSE) as error:
            _log.warning("keeping older keys", action="oidc", error=type(error).__name__)
            return
        self._keys = {str(key.key_id or ""): key for key in found.keys}
        self._fetched_s = self._clock.monotonic_s()

    async def _discovered(self) -> str:
        issuer = self._rules.issuer.rstrip("/")
        document = await self._fetch(f"{issuer}/.well-known/openid-configuration")
        if document.get("issuer") != self._rules.issuer or not document.get("jwks_uri"):
            raise ProviderAway("the identity provider's configuration names another issuer", 5.0)
        return str(document["jwks_uri"])
