"""One provider's endpoint over HTTP: sends a call, and reads the chunks of its answer.

Called by `predictor.engine.upstream.engine`. Must not know limits, fallbacks or who may call.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
from yarl import URL

from eventing.errors import InvalidJob
from eventing.job.call.moderation import MODERATION
from eventing.process.egress import AllowList, check_url
from eventing.process.guarded_resolver import GuardedResolver, TargetRefused
from eventing.process.setting import token_file
from predictor.engine.engine import CACHE_SALT, EngineRequest, cache_salt
from predictor.engine.upstream.errors import (
    UpstreamFailed,
    UpstreamUnavailable,
    error_in_stream,
    error_of,
)
from predictor.engine.upstream.event_stream import EventStream
from predictor.errors import EngineDeadError, EngineStartError

EMBEDDING_URL: Final = "/v1/embeddings"
_CACHE_KEY: Final = "prompt_cache_key"
_OURS: Final = (
    *("store", "metadata", "background", _CACHE_KEY, "safety_identifier", "service_tier"),
    MODERATION,
)
"""Fields that we serve ourselves; a provider would keep them, or charge for them."""
_CONNECT_S: Final = 5.0
_CHECK_S: Final = 10.0
_LIMIT_BYTES: Final = 64 * 1024 * 1024
_ERROR_BYTES: Final = 64 * 1024

Chunk = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A provider's model. `url` ends with the version, as OpenAI's clients have it: `https://HOST/v1`."""

    url: str
    model: str
    key_file: Path | None = None
    cache_salt: bool = False  #: it is vLLM, whose prefix cache is to be parted by tenants

    @property
    def host(self) -> str:
        return URL(self.url).host or ""


@dataclass(slots=True)
class Answer:
    """The head of an answer, and its chunks: those of a stream, or one whole body."""

    headers: Mapping[str, str]
    chunks: AsyncIterator[Chunk] = field(repr=False)


class Target:
    """An endpoint with its connections. One that stands in for another is asked to answer itself, so that models which
    stand in for each other, here or in several Torpors, ask in no circle.
    """

    def __init__(
        self, endpoint: Endpoint, allowed: AllowList, *, stall_s: float, is_stand_in: bool
    ) -> None:
        self.endpoint: Final = endpoint
        self._base = endpoint.url.rstrip("/")
        self._allowed = allowed
        self._stall_s = stall_s
        self._is_stand_in = is_stand_in
        self._session: aiohttp.ClientSession | None = None

    @property
    def is_open(self) -> bool:
        return self._session is not None and not self._session.closed

    async def open(self) -> None:
        """Check the settings, and the key where the provider answers; one that is away is no reason not to start.
        Raises `EngineStartError`.
        """
        try:
            check_url(self.endpoint.url, self._allowed, "TORPOR_UPSTREAM_URL")
            headers = self._headers("")
        except (InvalidJob, ValueError) as error:
            raise EngineStartError(str(error)) from error
        guard = GuardedResolver(aiohttp.ThreadedResolver(), self._allowed)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=guard, limit=0),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT_S, sock_read=self._stall_s
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        await self._check_key(self._session, headers)

    async def close(self) -> None:
        """Close the connections; what runs fails."""
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def send(self, request: EngineRequest) -> AsyncIterator[Answer]:
        """Send one call. Raises `UpstreamFailed` when the answer broke off, and what `error_of` says of an answer
        that is none; its `headers` are those of the answer.
        """
        if self._session is None or self._session.closed:
            raise EngineDeadError("the provider's connections are closed")
        try:
            headers = self._headers(request.idempotency_key) | {"content-type": "application/json"}
        except ValueError as error:  # a Secret that is being replaced
            raise UpstreamUnavailable(str(error)) from error
        if self._is_stand_in or not request.allows_fallback:
            headers["torpor-fallback"] = "none"
        has_salt = self.endpoint.cache_salt
        body = orjson.dumps(provider_body(request, self.endpoint.model, has_salt=has_salt))
        url = f"{self._base}{request.url.removeprefix('/v1')}"
        try:
            async with self._session.post(
                url, data=body, headers=headers, allow_redirects=False
            ) as response:
                if response.status != 200:
                    said = await _json_or_none(response)
                    raise error_of(response.status, response.headers, said)
                yield Answer(response.headers, _chunks(response))
        except TargetRefused as error:
            raise UpstreamUnavailable(f"the provider's host is refused: {error}") from error
        except aiohttp.ClientConnectorError as error:
            raise UpstreamUnavailable("the provider cannot be reached") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UpstreamFailed("the provider's answer broke off") from error

    async def _check_key(self, session: aiohttp.ClientSession, headers: Mapping[str, str]) -> None:
        timeout = aiohttp.ClientTimeout(total=_CHECK_S)
        url = f"{self._base}/models"
        try:
            async with session.get(
                url, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            return
        if status in (401, 403):
            await session.close()
            raise EngineStartError(f"the provider refuses our key: {status} from {url}")

    def _headers(self, idempotency_key: str) -> dict[str, str]:
        """The key is read for each call: a Secret that is rotated is a file that changes. Raises `ValueError`."""
        headers = {"user-agent": "torpor"}
        if self.endpoint.key_file is not None:
            headers["authorization"] = f"Bearer {token_file(self.endpoint.key_file)}"
        if idempotency_key:
            headers["idempotency-key"] = idempotency_key
        return headers


def provider_body(request: EngineRequest, model: str, *, has_salt: bool = False) -> dict[str, Any]:
    """The body for the provider: its model name, always a stream, nothing that it would keep. `has_salt` is for vLLM,
    whose cache and router are told whose prefix it is.
    """
    body = {name: value for name, value in request.body.items() if name not in _OURS}
    body["model"] = model
    if has_salt:
        body[CACHE_SALT] = cache_salt(request.tenant, body.get(CACHE_SALT))
        if key := request.body.get(_CACHE_KEY):
            body[_CACHE_KEY] = cache_salt(request.tenant, key)
    if request.url != EMBEDDING_URL:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[Chunk]:
    """Raises `UpstreamFailed` for a stream that ends before its answer."""
    if response.content_type != "text/event-stream":
        whole = await _json_or_none(response)
        if not isinstance(whole, dict):
            raise UpstreamFailed("the provider's answer is not JSON")
        yield whole
        return
    events, open_choices, is_begun = EventStream(limit_bytes=_LIMIT_BYTES), set[int](), False
    async for received in response.content.iter_any():
        for data in events.feed(received):
            if data == b"[DONE]":
                continue
            chunk = _chunk(data)
            for choice in chunk.get("choices", ()):
                is_begun = True
                is_last = choice.get("finish_reason") is not None
                (open_choices.discard if is_last else open_choices.add)(choice.get("index", 0))
            yield chunk
    if open_choices or not is_begun:
        raise UpstreamFailed("the provider's stream ended before its answer")


def _chunk(data: bytes) -> Chunk:
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise UpstreamFailed("the provider sent a chunk that is not JSON") from error
    if not isinstance(chunk, dict):
        raise UpstreamFailed("the provider sent a chunk that is no object")
    if (said := error_in_stream(chunk)) is not None:
        raise said
    return chunk


async def _json_or_none(response: aiohttp.ClientResponse) -> object:
    limit = _LIMIT_BYTES if response.status == 200 else _ERROR_BYTES
    raw = b""
    while len(raw) < limit and (more := await response.content.read(limit - len(raw))):
        raw += more
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
