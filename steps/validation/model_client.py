"""Asks models that judge: guards, checkers, verifiers.

Called by the steps that need a verdict. A model that is served here is asked through the queue like any caller's, so it
may be at zero: the call has an idempotency key, by which a later run of the step comes back to the same job instead of
starting another. Must not know what is judged.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar, Final, TypeVar

import aiohttp
import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eventing.clock import Clock
from eventing.errors import BadRequest, Unavailable
from eventing.process.setting import HttpUrl

_log = structlog.get_logger()
_NO_VERDICT: Final = frozenset({400, 413, 422})
"""Statuses of an endpoint that will never answer this text."""
_RETRY_S: Final = 600
"""After this time a model's job that failed is asked anew, under another key."""


class ModelSettings(BaseModel):
    """A model that judges, as a step's setting names it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    SETTING: ClassVar[str]

    model: str = Field(min_length=1, max_length=128)
    url: HttpUrl | None = None
    """An OpenAI-compatible endpoint up to `/v1`; without it the api of this installation, `TORPOR_GUARD_URL`."""
    timeout_ms: int = Field(60_000, ge=100, le=3_600_000)
    """Longest wait for one answer; after it the step is unavailable, and asks again later."""


_S = TypeVar("_S", bound=ModelSettings)


def parse_model(kind: type[_S], value: Any) -> _S | None:
    """The setting that names a model. Raises `BadRequest` naming the field."""
    if value is None:
        return None
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join([kind.SETTING, *(str(part) for part in first["loc"])])
        raise BadRequest(f"{where}: {first['msg']}", where) from None


class ModelClient:
    """Asks models behind OpenAI-compatible endpoints. `url` is the endpoint of this installation, empty where there is
    none. Close it with `aclose`.
    """

    def __init__(self, clock: Clock, *, url: str = "", token: str = "") -> None:
        self._clock = clock
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session: aiohttp.ClientSession | None = None

    async def ask(
        self, settings: ModelSettings, path: str, body: Mapping[str, Any], digest: str
    ) -> Any:
        """The endpoint's JSON; None where it refuses the call. Calls of the same `digest` are one job. Raises
        `Unavailable` while the model does not answer, and `BadRequest` without an endpoint.
        """
        base = settings.url or self._url
        if not base:
            where = f"{settings.SETTING}.url"
            raise BadRequest(f"{where} is missing: TORPOR_GUARD_URL is not set", where)
        retry = self._clock.wall_ms() // 1000 // _RETRY_S
        headers = {
            "Idempotency-Key": f"{settings.SETTING}-{digest[:32]}-{retry}",
            "Cache-Control": "no-store",
        }
        return await self.post(f"{base.rstrip('/')}/{path}", body, headers, settings.timeout_ms)

    async def post(
        self, url: str, body: Mapping[str, Any], headers: Mapping[str, str], timeout_ms: int
    ) -> Any:
        """The endpoint's JSON; None where it refuses the text. Raises `Unavailable`."""
        self._session = self._session or aiohttp.ClientSession()
        limit = aiohttp.ClientTimeout(total=timeout_ms / 1000)
        try:
            async with self._session.post(
                url,
                json=dict(body),
                headers={**self._headers, **headers},
                timeout=limit,
                allow_redirects=False,
            ) as answer:
                if answer.status != 200:
                    _log.warning("no verdict", action="ask model", status=answer.status)
                if answer.status in _NO_VERDICT:
                    return None
                if answer.status != 200:
                    raise Unavailable(f"the judging model's endpoint answered {answer.status}")
                return await answer.json(content_type=None)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise Unavailable("the judging model does not answer") from error

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


def digest_of(*parts: str) -> str:
    """What names a call: of all that is judged, and of a name that its author does not have, so that no text can hold
    the mark that is made of it.
    """
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def said_in(answer: Any) -> str | None:
    """The text of a completion's first choice; None for an answer of another shape."""
    try:
        choice = answer["choices"][0]
        said = choice["text"] if "text" in choice else choice["message"]["content"]
        return said if isinstance(said, str) else None
    except (KeyError, IndexError, TypeError):
        return None
