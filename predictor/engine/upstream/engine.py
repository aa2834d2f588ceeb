"""A provider as the engine: an OpenAI-compatible endpoint.

Implements `predictor.engine.engine.Engine`, so jobs are delivered, leased, streamed, admitted and drained as with
vLLM. A provider gives text and no token ids, so an answer that broke off starts over, and its stream says so. A
tenant's data leaves the cluster only where `tenants` allows it. Must not know the store or events.

Each chunk that shows text counts as one token until the provider's `usage` comes with the last one.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
from yarl import URL

from eventing.clock import Clock, SystemClock
from eventing.errors import InvalidJob
from eventing.process.egress import AllowList, check_url
from eventing.process.guarded_resolver import GuardedResolver, TargetRefused
from eventing.process.setting import token_file
from predictor.engine.engine import ColdStartPhase, DecodeStep, EngineRequest, PhaseReporter
from predictor.engine.upstream.errors import (
    UpstreamFailed,
    UpstreamRateLimited,
    UpstreamUnavailable,
    error_in_stream,
    error_of,
)
from predictor.engine.upstream.event_stream import EventStream
from predictor.errors import BadRequest, EngineDeadError, EngineStartError

EMBEDDING_URL: Final = "/v1/embeddings"
_URLS: Final = ("/v1/chat/completions", "/v1/completions", EMBEDDING_URL)
_OURS: Final = ("store", "metadata", "background", "prompt_cache_key", "safety_identifier")
"""Fields that we serve ourselves; a provider would keep them."""
_PLACEHOLDER: Final = (0,)
"""Stands for the tokens of a chunk: their ids are the provider's secret."""
_CONNECT_S: Final = 5.0
_CHECK_S: Final = 10.0
_LIMIT_BYTES: Final = 64 * 1024 * 1024
_ERROR_BYTES: Final = 64 * 1024
ALL_TENANTS: Final = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSettings:
    """A provider. `url` ends with the version, as OpenAI clients have it: `https://HOST/v1`."""

    url: str
    model_name: str  #: in requests
    upstream_model: str  #: in the provider's
    key_file: Path | None = None
    tenants: frozenset[str] = frozenset()  #: whose data may leave the cluster; `*` for all
    allowed: AllowList = field(default_factory=AllowList)
    max_concurrency: int = 64
    max_model_len: int = 131_072
    stall_s: float = 120.0


class UpstreamEngine:
    """An `Engine` that sends each request to a provider."""

    def __init__(self, settings: UpstreamSettings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._session: aiohttp.ClientSession | None = None
        self._not_before_s = 0.0

    @property
    def model_names(self) -> Sequence[str]:
        return (self._settings.model_name,)

    @property
    def device(self) -> str:
        return f"provider at {URL(self._settings.url).host}"

    @property
    def max_concurrency(self) -> int:
        return self._settings.max_concurrency

    @property
    def max_model_len(self) -> int:
        return self._settings.max_model_len

    @property
    def version(self) -> str:
        return "upstream"

    async def start(self, report: PhaseReporter) -> None:
        """Check the settings, and the credentials where the provider answers. One that is away is no reason not to
        start: jobs wait for it.
        """
        report(ColdStartPhase.WARM_UP)
        if not self._settings.tenants:
            raise EngineStartError(
                "no tenant's data may leave the cluster: set TORPOR_UPSTREAM_TENANTS (* for all)"
            )
        try:
            check_url(self._settings.url, self._settings.allowed, "TORPOR_UPSTREAM_URL")
            headers = self._headers("")
        except (InvalidJob, ValueError) as error:
            raise EngineStartError(str(error)) from error
        self._session = self._open()
        await self._check_key(self._session, headers)
        report(ColdStartPhase.READY)

    async def stop(self) -> None:
        """Close the connections; what runs fails."""
        if self._session is not None:
            await self._session.close()

    def is_healthy(self) -> bool:
        return self._session is not None and not self._session.closed

    def validate(self, request: EngineRequest) -> None:
        """See `Engine.validate`. Raises `UpstreamRateLimited` too, before a lease is taken, while the provider has
        asked for patience.
        """
        model, tenants = request.body.get("model"), self._settings.tenants
        if model is not None and model not in self.model_names:
            raise BadRequest(
                f"no model {model!r:.80} here; there is: {self._settings.model_name}", field="model"
            )
        if request.url not in _URLS:
            raise BadRequest(f"the provider serves {', '.join(_URLS)}", field="url")
        if ALL_TENANTS not in tenants and request.tenant not in tenants:
            raise BadRequest(
                f"this tenant's data may not leave the cluster, and {self._settings.model_name} is outside",
                field="model",
            )
        if (wait_s := self._not_before_s - self._clock.monotonic_s()) > 0:
            raise UpstreamRateLimited("the provider asked for patience", wait_s)

    def can_resume(self, request: EngineRequest) -> bool:
        """Never: there are no token ids."""
        return False

    async def run(
        self, request: EngineRequest, prior_token_ids: Sequence[int]
    ) -> AsyncGenerator[DecodeStep, None]:
        """See `Engine.run`. Raises `UpstreamFailed` when the answer broke off, `UpstreamUnavailable`,
        `UpstreamRateLimited`, `UpstreamRefused`, `UpstreamKeyRefused`.
        """
        self.validate(request)
        if self._session is None or self._session.closed:
            raise EngineDeadError("the provider's connections are closed")
        url = f"{self._settings.url.rstrip('/')}{request.url.removeprefix('/v1')}"
        body = orjson.dumps(provider_body(request, self._settings.upstream_model))
        headers = self._headers(request.idempotency_key) | {"content-type": "application/json"}
        try:
            async with self._session.post(
                url, data=body, headers=headers, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise await self._refusal(response)
                async for step in _steps(response):
                    yield step
        except TargetRefused as error:
            raise UpstreamUnavailable(f"the provider's host is refused: {error}") from error
        except aiohttp.ClientConnectorError as error:
            raise UpstreamUnavailable("the provider cannot be reached") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UpstreamFailed("the provider's answer broke off") from error

    async def _refusal(self, response: aiohttp.ClientResponse) -> Exception:
        error = error_of(response.status, response.headers, await _json_or_none(response))
        if isinstance(error, UpstreamRateLimited):
            until_s = self._clock.monotonic_s() + error.retry_after_s
            self._not_before_s = max(self._not_before_s, until_s)
        return error

    def _open(self) -> aiohttp.ClientSession:
        guard = GuardedResolver(aiohttp.ThreadedResolver(), self._settings.allowed)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=guard, limit=0),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT_S, sock_read=self._settings.stall_s
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def _check_key(self, session: aiohttp.ClientSession, headers: Mapping[str, str]) -> None:
        url = f"{self._settings.url.rstrip('/')}/models"
        timeout = aiohttp.ClientTimeout(total=_CHECK_S)
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
        if self._settings.key_file is not None:
            headers["authorization"] = f"Bearer {token_file(self._settings.key_file)}"
        if idempotency_key:
            headers["idempotency-key"] = idempotency_key
        return headers


def provider_body(request: EngineRequest, model: str) -> dict[str, Any]:
    """The body for the provider: its model name, always a stream, nothing that it would keep."""
    body = {name: value for name, value in request.body.items() if name not in _OURS}
    body["model"] = model
    if request.url != EMBEDDING_URL:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


async def _steps(response: aiohttp.ClientResponse) -> AsyncIterator[DecodeStep]:
    """The answer's steps: of a stream, or one for a whole body. Raises `UpstreamFailed` for a stream without an
    end.
    """
    if response.content_type != "text/event-stream":
        whole = await _json_or_none(response)
        if not isinstance(whole, dict):
            raise UpstreamFailed("the provider's answer is not JSON")
        yield DecodeStep(_PLACEHOLDER, whole)
        return
    events, open_choices, is_begun = EventStream(limit_bytes=_LIMIT_BYTES), set[int](), False
    async for received in response.content.iter_any():
        for data in events.feed(received):
            if data == b"[DONE]":
                continue
            chunk = _chunk(data)
            for choice in chunk.get("choices", ()):
                is_begun = True
                change = (
                    open_choices.add
                    if choice.get("finish_reason") is None
                    else open_choices.discard
                )
                change(choice.get("index", 0))
            yield DecodeStep(_PLACEHOLDER if _shows_text(chunk) else (), chunk)
    if open_choices or not is_begun:
        raise UpstreamFailed("the provider's stream ended before its answer")


def _chunk(data: bytes) -> dict[str, Any]:
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise UpstreamFailed("the provider sent a chunk that is not JSON") from error
    if not isinstance(chunk, dict):
        raise UpstreamFailed("the provider sent a chunk that is no object")
    if (said := error_in_stream(chunk)) is not None:
        raise said
    return chunk


def _shows_text(chunk: Mapping[str, Any]) -> bool:
    for choice in chunk.get("choices", ()):
        shown = choice.get("delta") or choice
        if any(
            shown.get(name)
            for name in ("content", "reasoning", "reasoning_content", "tool_calls", "text")
        ):
            return True
    return False


async def _json_or_none(response: aiohttp.ClientResponse) -> object:
    limit = _ERROR_BYTES if response.status != 200 else _LIMIT_BYTES
    raw = await response.content.read(limit)
    try:
        while len(raw) < limit and (more := await response.content.read(limit - len(raw))):
            raw += more
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
