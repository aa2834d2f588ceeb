"""API keys: creating, checking, rotating and storing them.

Called by the api (to authenticate a caller) and by `torpor keys`. Only a SHA-256 digest of a key is stored: a key
has 256 random bits, so a plain hash cannot be reversed, and it costs microseconds where a password hash takes a
tenth of a second. Must not know HTTP.
"""

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import orjson
from redis.asyncio import Redis

from eventing.errors import BadRequest, NotFound
from eventing.job.job import OUR_SOURCES
from eventing.known_fields import known_fields
from eventing.redis import keys
from eventing.redis.connection import failures_named

SCOPES: Final = (
    "jobs:read",
    "jobs:write",
    "jobs:cancel",
    "events:write",
    "approvals",
    "metrics:read",
    "admin",
)
"""The permissions that a key can have; `api.auth.principal.Scope` describes each."""
DEFAULT_SCOPES: Final = ("jobs:read", "jobs:write", "jobs:cancel", "events:write")
PREFIX: Final = "torpor"
_FORM: Final = re.compile(r"torpor_([0-9a-f]{16})_([A-Za-z0-9_-]{43})\Z")
_MODEL: Final = re.compile(r"[A-Za-z0-9._:/@-]{1,128}\Z")
_HASH: Final = f"{keys.PREFIX}:api-keys"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key as it is stored. Times are seconds since the epoch; `expires_s` is 0 for a key that does not
    expire.
    """

    id: str
    tenant: str
    scopes: tuple[str, ...]
    digest: str
    name: str = ""
    created_s: int = 0
    expires_s: int = 0
    requests_per_minute: int = 0
    """Calls other than GET; 0 for no limit but its tenant's."""
    budget_per_month: float = 0.0
    """What its jobs may cost in a calendar month; 0 for no budget but its tenant's."""
    models: tuple[str, ...] = ()
    """The models that it may use; all that its tenant may where none are named."""

    def opens(self, text: str, now_s: float) -> bool:
        """True when `text` is this key and the key is valid at that time. The comparison takes constant time."""
        is_same = hmac.compare_digest(_digest(text), self.digest)
        return is_same and (not self.expires_s or now_s < self.expires_s)


class KeySource(Protocol):
    """Where API keys are looked up."""

    async def find(self, key_id: str) -> ApiKey | None:
        """The key with this id, or None. Raises `StoreUnavailable`."""


def mint(
    tenant: str,
    *,
    now_s: int,
    scopes: Iterable[str] = DEFAULT_SCOPES,
    name: str = "",
    expires_s: int = 0,
    requests_per_minute: int = 0,
    budget_per_month: float = 0.0,
    models: Iterable[str] = (),
) -> tuple[ApiKey, str]:
    """A new key and its text; the text is not stored anywhere. Raises `BadRequest` naming the invalid field."""
    key_id = secrets.token_hex(8)
    text = f"{PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
    key = ApiKey(
        id=key_id,
        tenant=check_tenant(tenant),
        scopes=_check_scopes(scopes),
        digest=_digest(text),
        name=name,
        created_s=now_s,
        expires_s=expires_s,
        requests_per_minute=requests_per_minute,
        budget_per_month=budget_per_month,
        models=check_models(models),
    )
    return key, text


def key_id_of(text: str) -> str:
    """The id inside a key's text, by which its record is found; empty when the text is not one of our keys."""
    found = _FORM.match(text)
    return found[1] if found else ""


def check_tenant(tenant: object) -> str:
    """Checks a tenant's name. Raises `BadRequest` when it is empty, too long, not printable, or one of Torpor's own."""
    if isinstance(tenant, str) and tenant.startswith(OUR_SOURCES):
        raise BadRequest(f"tenant must not begin with {OUR_SOURCES}", "tenant")
    if not isinstance(tenant, str) or not tenant.isprintable() or not 0 < len(tenant.encode()) < 65:
        raise BadRequest("tenant must be 1 to 64 printable bytes", "tenant")
    return tenant


class KeyStore(KeySource, Protocol):
    """A `KeySource` whose keys can be changed."""

    async def put(self, key: ApiKey) -> None:
        """Store the key; a key with the same id is replaced."""


async def rotate(
    key_store: KeyStore, key_id: str, *, now_s: int, overlap_s: int
) -> tuple[ApiKey, str]:
    """A new key with the same permissions; the old one stays valid for `overlap_s`. Raises `NotFound`.

    If the process dies half-way, both keys are valid, so the caller is not locked out.
    """
    old = await key_store.find(key_id)
    if old is None:
        raise NotFound(f"no key {key_id}")
    new, text = mint(
        old.tenant,
        now_s=now_s,
        scopes=old.scopes,
        name=old.name,
        requests_per_minute=old.requests_per_minute,
        budget_per_month=old.budget_per_month,
        models=old.models,
    )
    await key_store.put(new)
    await key_store.put(replace(old, expires_s=now_s + overlap_s))
    return new, text


class RedisKeys:
    """Keys in Redis; the client belongs to the caller. Every method raises `StoreUnavailable`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def find(self, key_id: str) -> ApiKey | None:
        async with failures_named():
            raw = await self._redis.hget(_HASH, key_id)
        return _stored_key(raw) if raw else None

    async def list(self, tenant: str = "") -> list[ApiKey]:
        """All keys, or those of one tenant, oldest first."""
        async with failures_named():
            rows = await self._redis.hvals(_HASH)
        found = [_stored_key(raw) for raw in rows]
        return sorted(
            (key for key in found if tenant in ("", key.tenant)), key=lambda k: (k.created_s, k.id)
        )

    async def put(self, key: ApiKey) -> None:
        async with failures_named():
            await self._redis.hset(_HASH, key.id, orjson.dumps(asdict(key)))

    async def remove(self, key_id: str) -> bool:
        """Revoke the key at once (an api process that has it cached forgets it within seconds)."""
        async with failures_named():
            return bool(await self._redis.hdel(_HASH, key_id))


class FileKeys:
    """Keys in a JSON file (a list of records), for example a mounted secret; the file is read again when it
    changes.
    """

    def __init__(self, path: Path) -> None:
        """Raises `BadRequest` naming what is wrong with the file."""
        self._path = path
        self._seen: tuple[int, int] = (0, 0)
        self._keys: dict[str, ApiKey] = {}
        self._read_if_changed()

    async def find(self, key_id: str) -> ApiKey | None:
        """While the file is invalid, the last valid content is used."""
        with suppress(BadRequest):
            await asyncio.to_thread(self._read_if_changed)
        return self._keys.get(key_id)

    def _read_if_changed(self) -> None:
        try:
            stat = self._path.stat()
            seen = (stat.st_mtime_ns, stat.st_size)
            if seen == self._seen:
                return
            records = orjson.loads(self._path.read_bytes())
        except (OSError, orjson.JSONDecodeError) as error:
            raise BadRequest(
                f"cannot read keys from {self._path}: {error}", "TORPOR_KEYS_SOURCE"
            ) from error
        if not isinstance(records, list):
            raise BadRequest(f"{self._path} must hold a JSON list", "TORPOR_KEYS_SOURCE")
        self._keys = {key.id: key for key in map(parse_key, records)}
        self._seen = seen


def parse_key(record: Mapping[str, Any]) -> ApiKey:
    """The key in a record. Raises `BadRequest` when the record is not a valid key."""
    try:
        fields = known_fields(ApiKey, record)
        named = {name: tuple(record.get(name, ())) for name in ("scopes", "models")}
        key = ApiKey(**{**fields, **named})
    except (TypeError, KeyError) as error:
        raise BadRequest(f"not a key record: {error}", "keys") from error
    check_tenant(key.tenant)
    _check_scopes(key.scopes)
    check_models(key.models)
    return key


def _stored_key(raw: bytes) -> ApiKey:
    """A key written to the store by this version or another; unknown scopes are not granted."""
    record = orjson.loads(raw)
    scopes = tuple(scope for scope in record["scopes"] if scope in SCOPES)
    models = tuple(record.get("models", ()))
    return ApiKey(**known_fields(ApiKey, record) | {"scopes": scopes, "models": models})


def check_models(models: Iterable[str]) -> tuple[str, ...]:
    """The names, each once. Raises `BadRequest` for one that no model can have."""
    named = tuple(dict.fromkeys(models))
    for name in named:
        if not isinstance(name, str) or not _MODEL.match(name):
            raise BadRequest("models must be names of models", "models")
    return named


def _check_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    named = tuple(dict.fromkeys(scopes))
    if not named or (unknown := [scope for scope in named if scope not in SCOPES]):
        wrong = f", not {unknown[0]!r:.40}" if named else ""
        raise BadRequest(f"scopes must be of {', '.join(SCOPES)}{wrong}", "scopes")
    return named


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
