"""The api as the command line uses it: plain HTTP, plain JSON, any Torpor anywhere.

Called by the commands. Errors of the api come back as `UserError` with the api's own words.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from torpor.cli.errors import UserError
from torpor.local.data_dir import find_addresses

DEFAULT_API: Final = "http://127.0.0.1:8000"
_TIMEOUT: Final = aiohttp.ClientTimeout(total=70, connect=3)
_STREAM: Final = aiohttp.ClientTimeout(total=None, connect=3, sock_read=60)


def api_address(named: str, data_dir: Path) -> str:
    """The api to talk to: the one named, else the stack of `data_dir`, else the default port."""
    found = find_addresses(data_dir)
    return (named or (found.api if found else "") or DEFAULT_API).rstrip("/")


class _Credentials(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="TORPOR_", frozen=True, extra="ignore")

    api_key: SecretStr = SecretStr("")
    """What an api that asks for keys is shown; made with `torpor keys create`."""


class Api:
    """One session with an api."""

    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self._session = session
        self.address = address

    async def call(
        self, method: str, path: str, *, body: Any = None, query: Mapping[str, str] | None = None
    ) -> Any:
        """The JSON that the api answers. Raises `UserError` with the api's reason otherwise."""
        data = orjson.dumps(body) if body is not None else None
        headers = {"content-type": "application/json"} if data else {}
        try:
            async with self._session.request(
                method,
                self.address + path,
                data=data,
                params=query,
                headers=headers,
                timeout=_TIMEOUT,
            ) as answer:
                content = await answer.read()
                if answer.status >= 400:
                    raise UserError(_reason(answer.status, content))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._away(error) from error
        return orjson.loads(content) if content else None

    async def events(self, job_id: str) -> AsyncIterator[tuple[str, Any]]:
        """Name and data of each event of a job's life, to its end; reconnects where it was cut."""
        cursor, is_over = "", False
        while not is_over:
            try:
                async for name, data, cursor_seen in self._stream(job_id, cursor):
                    cursor = cursor_seen or cursor
                    is_over = name == "result"
                    yield name, data
            except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, TimeoutError):
                continue
            except (aiohttp.ClientError, OSError) as error:
                raise self._away(error) from error

    async def _stream(self, job_id: str, cursor: str) -> AsyncIterator[tuple[str, Any, str]]:
        headers = {"last-event-id": cursor} if cursor else {}
        url = f"{self.address}/v1/jobs/{job_id}/events"
        async with self._session.get(url, headers=headers, timeout=_STREAM) as answer:
            if answer.status >= 400:
                raise UserError(_reason(answer.status, await answer.read()))
            fields: dict[str, str] = {}
            async for raw in answer.content:
                line = raw.decode().rstrip("\r\n")
                if not line and "data" in fields:
                    yield (
                        fields.get("event", ""),
                        orjson.loads(fields["data"]),
                        fields.get("id", ""),
                    )
                if not line:
                    fields = {}
                elif not line.startswith(":"):
                    name, _, value = line.partition(": ")
                    fields[name] = value

    def _away(self, error: Exception) -> UserError:
        return UserError(
            f"no Torpor answers at {self.address} ({type(error).__name__}); start one with "
            "`torpor up`, or name one with --api or TORPOR_API_URL"
        )


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Api]:
    """A session with the api at `address`, closed at the end; with the key of `TORPOR_API_KEY`."""
    key = _Credentials().api_key.get_secret_value()
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(read_bufsize=1 << 20, headers=headers) as session:
        yield Api(session, address)


def _reason(status: int, content: bytes) -> str:
    """The api's own words (RFC 9457), with the field they are about."""
    try:
        problem = orjson.loads(content)
        words = problem.get("detail") or problem.get("title") or str(status)
        field = problem.get("field")
        return f"{words} [{field}]" if field and field not in words else str(words)
    except (orjson.JSONDecodeError, AttributeError):
        return f"the api answered {status}"
