"""Bearer tokens of an identity provider (OIDC): signature by its published keys, then the claims.

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

from api.auth.authenticator import scopes_of
from api.auth.principal import Principal
from eventing.api_key import check_tenant
from eventing.clock import Clock
from eventing.errors import BadRequest, Unavailable

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "ES256", "ES384", "EdDSA")
"""Asymmetric only: with HS256 the public key would be a secret that everybody knows."""
_FRESH_S: Final = 600.0
_AGAIN_S: Final = 30.0
"""A token with an unknown key id makes us ask again, as does a provider that was away, but not more
often than this.
"""
_AT_FIRST_S: Final = 5.0
"""The same while we have no keys at all; who comes meanwhile is told at once."""
_LEEWAY_S: Final = 30
_LONGEST_TOKEN: Final = 16 * 1024
_LARGEST_DOCUMENT: Final = 1024 * 1024
_NONSENSE: Final = (AttributeError, KeyError, TypeError, ValueError)
"""What PyJWT lets through for a key set whose keys lack what they must have."""
_TIMEOUT: Final = aiohttp.ClientTimeout(total=5)
_log = structlog.get_logger()

Fetch = Callable[[str], Awaitable[Mapping[str, Any]]]


class ProviderAway(Unavailable):
    """The identity provider does not answer, and we have no keys of it yet."""

    code = "identity_provider_unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcRules:
    """Whose tokens are good. `jwks_url` is discovered when it is empty."""

    issuer: str
    audience: str
    jwks_url: str = ""
    tenant_claim: str = "tenant"
    scope_claim: str = "scope"


async def fetch_json(url: str) -> Mapping[str, Any]:
    """The JSON object at `url`. Raises `ProviderAway`."""
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            raw = await answer.content.read(_LARGEST_DOCUMENT)
            document = orjson.loads(raw) if answer.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, OSError, orjson.JSONDecodeError) as error:
        raise ProviderAway("the identity provider does not answer", 5.0) from error
    if not isinstance(document, dict):
        raise ProviderAway("the identity provider answers nonsense", 5.0)
    return document


class OidcVerifier:
    """A `TokenVerifier`; keeps the provider's keys for ten minutes, and while it is away."""

    def __init__(self, rules: OidcRules, clock: Clock, fetch: Fetch = fetch_json) -> None:
        self._rules = rules
        self._clock = clock
        self._fetch = fetch
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_s = float("-inf")
        self._asked_s = float("-inf")
        self._fetching = asyncio.Lock()

    async def verify(self, token: str) -> Principal | None:
        if len(token) > _LONGEST_TOKEN:
            return None
        try:
            key_id = str(jwt.get_unverified_header(token).get("kid", ""))
            key = await self._key(key_id)
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
            options={"require": ["exp", "iss", "aud"]},
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

    async def _key(self, key_id: str) -> jwt.PyJWK | None:
        async with self._fetching:  # one question for all who wait
            now_s = self._clock.monotonic_s()
            is_wanting = now_s - self._fetched_s > _FRESH_S or key_id not in self._keys
            pause_s = _AGAIN_S if self._keys else _AT_FIRST_S
            if is_wanting and now_s - self._asked_s > pause_s:
                self._asked_s = now_s
                await self._refresh()
            elif not self._keys:
                raise ProviderAway("the identity provider did not answer", pause_s)
        if not key_id and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)

    async def _refresh(self) -> None:
        try:
            url = self._rules.jwks_url or await self._discovered()
            found = jwt.PyJWKSet.from_dict(dict(await self._fetch(url)))
            self._keys = {str(key.key_id or ""): key for key in found.keys}
        except (ProviderAway, jwt.PyJWTError, *_NONSENSE) as error:
            if not self._keys:
                raise ProviderAway("the identity provider does not answer", 5.0) from error
            _log.warning("keeping older keys", action="oidc", error=type(error).__name__)
            return
        self._fetched_s = self._clock.monotonic_s()

    async def _discovered(self) -> str:
        issuer = self._rules.issuer.rstrip("/")
        document = await self._fetch(f"{issuer}/.well-known/openid-configuration")
        if document.get("issuer") != self._rules.issuer or not document.get("jwks_uri"):
            raise ProviderAway("the identity provider's configuration names another issuer", 5.0)
        return str(document["jwks_uri"])
