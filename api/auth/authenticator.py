"""Authenticates callers: by API key, by a bearer token of an identity provider, or by the broker's token.

Called by `api.routes.route` before every handler. Every refusal is the same, so that a caller learns nothing from
it. Must not know any route.
"""

import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from starlette.requests import HTTPConnection

from api.auth.principal import Principal, Scope
from eventing.api_key import ApiKey, KeySource, key_id_of
from eventing.errors import Forbidden, Unauthorized
from eventing.process.page import page_refusal

_REFUSED: Final = "send a valid key as «Authorization: Bearer ...»"
_REMEMBER_S: Final = 5.0
_REMEMBERED: Final = 10_000
_NOBODY: Final = ApiKey(id="", tenant="none", scopes=(), digest="0" * 64)
"""Compared with when there is no such key, so that a wrong id takes as long as a wrong key."""


class TokenVerifier(Protocol):
    """Verifies signed tokens (`api.auth.oidc`)."""

    async def verify(self, token: str) -> Principal | None:
        """The caller; None for an invalid token. Raises `Unavailable`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The credentials that are accepted. Without keys and verifier no caller is, unless `is_anonymous`: then every
    caller is the tenant `default`. A configured broker token is required in any case.
    """

    keys: KeySource | None = None
    verifier: TokenVerifier | None = None
    delivery_token: str = ""
    is_anonymous: bool = False
    is_local: bool = False
    """The server listens on loopback only, so the Host of a legitimate call is a loopback address."""
    cors_origins: tuple[str, ...] = ()
    """Web pages of these origins may call without a credential where anonymous access is allowed."""

    @property
    def is_open(self) -> bool:
        return self.is_anonymous and self.keys is None and self.verifier is None


class CredentialAuthenticator:
    """An `Authenticator`."""

    def __init__(self, credentials: Credentials, wall_s: Callable[[], float] = time.time) -> None:
        self._credentials = credentials
        self._wall_s = wall_s
        everything = frozenset(Scope)
        if credentials.delivery_token:
            everything -= {Scope.RESULTS_WRITE}
        self._anybody = Principal(scopes=everything)
        self._broker = Principal(
            tenant="", scopes=frozenset({Scope.RESULTS_WRITE}), key_id="broker"
        )

    async def principal_of(self, connection: HTTPConnection) -> Principal:
        token = bearer(connection.headers.get("authorization", ""))
        if token and self._is_broker(token):
            return self._broker
        if self._credentials.is_open:
            if self._credentials.delivery_token and _is_internal(connection):
                raise Unauthorized(_REFUSED)
            _check_page(connection, self._credentials)
            return self._anybody
        principal = await self._known(token) if token else None
        if principal is None:
            raise Unauthorized(_REFUSED)
        return principal

    async def is_still_good(self, principal: Principal) -> bool:
        """False once the API key of `principal` was revoked or has expired. Raises `StoreUnavailable`."""
        keys = self._credentials.keys
        if keys is None or not principal.is_revocable:
            return True
        key = await keys.find(principal.key_id)
        return key is not None and (not key.expires_s or self._wall_s() < key.expires_s)

    def _is_broker(self, token: str) -> bool:
        ours = self._credentials.delivery_token
        return bool(ours) and hmac.compare_digest(_bytes(token), _bytes(ours))

    async def _known(self, token: str) -> Principal | None:
        keys, verifier = self._credentials.keys, self._credentials.verifier
        if keys is not None and (key_id := key_id_of(token)):
            key = await keys.find(key_id) or _NOBODY
            return _principal(key) if key.opens(token, self._wall_s()) else None
        if verifier is not None and token.count(".") == 2:
            return await verifier.verify(token)
        return None


class RememberedKeys:
    """A `KeySource` that caches another one's answer for 5 s for each id, known or not."""

    def __init__(self, source: KeySource, now_s: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._now_s = now_s
        self._seen: OrderedDict[str, tuple[float, ApiKey | None]] = OrderedDict()

    async def find(self, key_id: str) -> ApiKey | None:
        at_s, key = self._seen.get(key_id, (float("-inf"), None))
        if self._now_s() - at_s < _REMEMBER_S:
            return key
        key = await self._source.find(key_id)
        self._seen[key_id] = (self._now_s(), key)
        self._seen.move_to_end(key_id)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return key


def bearer(header: str) -> str:
    """The token of an Authorization header; empty without one."""
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def scopes_of(names: tuple[str, ...]) -> frozenset[Scope]:
    """The scopes among `names`; only the broker may deliver results."""
    known = {str(scope): scope for scope in Scope if scope is not Scope.RESULTS_WRITE}
    return frozenset(known[name] for name in names if name in known)


def _principal(key: ApiKey) -> Principal:
    return Principal(
        tenant=key.tenant,
        scopes=scopes_of(key.scopes),
        key_id=key.id,
        requests_per_minute=key.requests_per_minute,
        budget_per_month=key.budget_per_month,
        models=frozenset(key.models),
        is_revocable=True,
    )


def _check_page(connection: HTTPConnection, rules: Credentials) -> None:
    """With anonymous access, another site's web page may not call. Raises `Forbidden`."""
    if refusal := page_refusal(
        connection.headers, is_local=rules.is_local, origins=rules.cors_origins
    ):
        raise Forbidden(refusal)


def _is_internal(connection: HTTPConnection) -> bool:
    """True for a call that only the broker may make; with anonymous access it is the only one that needs a token."""
    return connection.url.path.startswith("/internal/")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
