"""`torpor keys`: make, list, rotate and revoke API keys.

Keys lie in Redis (`TORPOR_REDIS_URL`, or the store of the stack on this machine; the api then runs
with `TORPOR_KEYS_SOURCE=redis`) or in a file (`--file`; `TORPOR_KEYS_SOURCE` names it). The text of a
key is shown once and kept nowhere.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol, TypeVar

import aiohttp
import orjson
import typer
from redis.asyncio import Redis

from eventing.api_key import (
    DEFAULT_SCOPES,
    SCOPES,
    ApiKey,
    KeyStore,
    RedisKeys,
    mint,
    parse_key,
    rotate,
)
from eventing.errors import TorporError
from eventing.process.setting import redis_url
from eventing.redis.connection import connect
from eventing.telemetry.usage import UsageRecords
from torpor.cli.catalog import epilog
from torpor.cli.errors import UsageError, UserError
from torpor.cli.options import DEFAULT_DATA_DIR, WHERE, DataDir, Json
from torpor.cli.view.screen import print_json, stderr, stdout
from torpor.cli.view.table import table
from torpor.local.data_dir import find_addresses

keys = typer.Typer(no_args_is_help=True)
Tenant = Annotated[str, typer.Argument(help="Whose key it is.")]
KeyId = Annotated[str, typer.Argument(help="The key's id.")]

RedisUrl = Annotated[
    str,
    typer.Option(
        envvar="TORPOR_REDIS_URL", help="The Redis that keeps the keys.", rich_help_panel=WHERE
    ),
]
File = Annotated[
    Path | None,
    typer.Option("--file", help="A JSON file that keeps them instead.", rich_help_panel=WHERE),
]
_DAY_S = 24 * 3600
_T = TypeVar("_T")


class _KeyStore(KeyStore, Protocol):
    async def list(self, tenant: str = "") -> list[ApiKey]: ...

    async def remove(self, key_id: str) -> bool: ...


@keys.command(
    epilog=epilog("torpor keys create acme", "torpor keys create acme --scope jobs:read --days 30")
)
def create(
    tenant: Tenant,
    scope: Annotated[
        list[str] | None, typer.Option(help=f"May be given often; of {', '.join(SCOPES)}.")
    ] = None,
    name: Annotated[str, typer.Option(help="A name for people.")] = "",
    days: Annotated[int, typer.Option(min=0, help="Days until it expires; 0 for never.")] = 0,
    requests_per_minute: Annotated[
        int, typer.Option(min=0, help="Calls other than GET; 0 for the tenant's limit alone.")
    ] = 0,
    budget_per_month: Annotated[
        float, typer.Option(min=0, help="What its jobs may cost a month; 0 for the tenant's alone.")
    ] = 0.0,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model that it may use; may be given often. All when left out."),
    ] = None,
    redis_url: RedisUrl = "",
    file: File = None,
    data_dir: DataDir = None,
) -> None:
    """Create a key for TENANT and print it once."""

    async def run(key_store: _KeyStore) -> str:
        now_s = int(time.time())
        key, text = mint(
            tenant,
            now_s=now_s,
            scopes=scope or DEFAULT_SCOPES,
            name=name,
            expires_s=now_s + days * _DAY_S if days else 0,
            requests_per_minute=requests_per_minute,
            budget_per_month=budget_per_month,
            models=model or (),
        )
        await key_store.put(key)
        return text

    place = _Place(redis_url, file, data_dir)
    _print_key(_with(place, run))
    if not redis_url and file is None and asyncio.run(_asks_for_no_key(place)):
        stderr.print(
            "this stack asks for no keys: every caller is served as tenant default, and the key changes nothing. "
            "Start it again with TORPOR_KEYS_SOURCE=redis",
            style="yellow",
        )


@keys.command(name="list", epilog=epilog("torpor keys list --tenant acme"))
def list_keys(
    tenant: Annotated[str, typer.Option(help="Only this tenant's.")] = "",
    redis_url: RedisUrl = "",
    file: File = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """List keys with tenant and scopes, without their text."""
    found = _with(_Place(redis_url, file, data_dir), lambda key_store: key_store.list(tenant))
    if as_json:
        shown = [asdict(key) for key in found]
        print_json([{k: v for k, v in each.items() if k != "digest"} for each in shown])
        return
    rows = table("id", "tenant", "scopes", "name", "expires")
    for key in found:
        rows.add_row(key.id, key.tenant, " ".join(key.scopes), key.name, _day(key.expires_s))
    stdout.print(rows)


@keys.command(
    name="rotate", epilog=epilog("torpor keys rotate 0123456789abcdef --overlap-hours 48")
)
def rotate_key(
    key_id: KeyId,
    overlap_hours: Annotated[int, typer.Option(min=0, help="The old key stays good so long.")] = 24,
    redis_url: RedisUrl = "",
    file: File = None,
    data_dir: DataDir = None,
) -> None:
    """Make a new key like KEY_ID and let the old one expire."""

    async def run(key_store: _KeyStore) -> str:
        now_s, overlap_s = int(time.time()), overlap_hours * 3600
        _, text = await rotate(key_store, key_id, now_s=now_s, overlap_s=overlap_s)
        return text

    _print_key(_with(_Place(redis_url, file, data_dir), run))


@keys.command(epilog=epilog("torpor keys revoke 0123456789abcdef"))
def revoke(
    key_id: KeyId, redis_url: RedisUrl = "", file: File = None, data_dir: DataDir = None
) -> None:
    """End a key now; an api that has just seen it forgets it within 5 s."""
    if not _with(_Place(redis_url, file, data_dir), lambda key_store: key_store.remove(key_id)):
        raise UserError(f"no key {key_id}")
    stderr.print(f"revoked {key_id}")


@keys.command(epilog=epilog("torpor keys forget acme --yes"))
def forget(
    tenant: Tenant,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    redis_url: RedisUrl = "",
    data_dir: DataDir = None,
) -> None:
    """Revoke all of TENANT's keys, and erase what is known of its usage and its budgets."""
    place = _Place(redis_url, None, data_dir)
    _url(place)  # what is wrong with it is said before the question
    if not yes:
        typer.confirm(f"revoke every key of {tenant} and erase its usage?", abort=True)
    gone = _on_redis(place, lambda redis: _forgotten(redis, tenant))
    stderr.print(f"revoked {gone} keys of {tenant}; its usage is erased")


async def _forgotten(redis: Redis, tenant: str) -> int:
    """How many keys there were. They go first, so that nothing more is used with them."""
    key_store = RedisKeys(redis)
    found = await key_store.list(tenant)
    for key in found:
        await key_store.remove(key.id)
    await UsageRecords(redis).erase(tenant, [key.id for key in found])
    return len(found)


class FileKeyStore:
    """Keys in a JSON file that only its owner may read. One writer at a time, as a person is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def find(self, key_id: str) -> ApiKey | None:
        return self._read().get(key_id)

    async def list(self, tenant: str = "") -> list[ApiKey]:
        return [key for key in self._read().values() if tenant in ("", key.tenant)]

    async def put(self, key: ApiKey) -> None:
        self._write(self._read() | {key.id: key})

    async def remove(self, key_id: str) -> bool:
        kept = self._read()
        if found := kept.pop(key_id, None):
            self._write(kept)
        return found is not None

    def _read(self) -> dict[str, ApiKey]:
        if not self._path.exists():
            return {}
        try:
            return {key.id: key for key in map(parse_key, orjson.loads(self._path.read_bytes()))}
        except (OSError, orjson.JSONDecodeError, TypeError) as error:
            raise UserError(f"cannot read keys from {self._path}: {error}") from error

    def _write(self, kept: dict[str, ApiKey]) -> None:
        """All or nothing: a reader sees the file before or after, never a half."""
        text = orjson.dumps([asdict(key) for key in kept.values()], option=orjson.OPT_INDENT_2)
        draft = self._path.with_suffix(".new")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(text)
        draft.replace(self._path)


class _Place(NamedTuple):
    """Where keys are stored, as far as the flags say."""

    redis_url: str
    file: Path | None
    data_dir: Path | None


def _with(place: _Place, run: Callable[[_KeyStore], Awaitable[_T]]) -> _T:
    """What `run` gives on the key store that was named; its refusals as one clear line."""

    if place.file is None:
        return _on_redis(place, lambda redis: run(RedisKeys(redis)))
    return asyncio.run(_in_words(run(FileKeyStore(place.file))))


def _on_redis(place: _Place, run: Callable[[Redis], Awaitable[_T]]) -> _T:
    """As `_with`, on the store itself."""

    async def work() -> _T:
        async with _redis(place) as redis:
            return await run(redis)

    return asyncio.run(_in_words(work()))


async def _in_words(work: Awaitable[_T]) -> _T:
    try:
        return await work
    except TorporError as error:
        raise UserError(error.message) from error


@asynccontextmanager
async def _redis(place: _Place) -> AsyncIterator[Redis]:
    redis = connect(_url(place))
    try:
        yield redis
    finally:
        await redis.aclose()


def _url(place: _Place) -> str:
    """The store's address. Raises `UsageError` for one that can be none."""
    try:
        return redis_url(place.redis_url or _embedded(place.data_dir))
    except ValueError as error:
        raise UsageError(f"--redis-url: {error}") from error


def _embedded(data_dir: Path | None) -> str:
    """The store of the stack on this machine. Raises `UserError` when none runs."""
    found = find_addresses(data_dir or DEFAULT_DATA_DIR)
    if found is None or not found.redis:
        raise UserError(
            f"no stack runs on {data_dir or DEFAULT_DATA_DIR} to keep keys in; name its --data-dir, a "
            "Redis with --redis-url (TORPOR_REDIS_URL), or a --file"
        )
    return found.redis


async def _asks_for_no_key(place: _Place) -> bool:
    """True when the stack on this machine serves a caller without a key."""
    found = find_addresses(place.data_dir or DEFAULT_DATA_DIR)
    if found is None or not found.api:
        return False
    timeout = aiohttp.ClientTimeout(total=2)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{found.api}/v1/jobs?limit=1") as answer,
        ):
            return answer.status == HTTPStatus.OK
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


def _print_key(text: str) -> None:
    stdout.print(text)
    stderr.print("shown this once; send it as «Authorization: Bearer ...»")


def _day(at_s: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at_s)) if at_s else "never"
