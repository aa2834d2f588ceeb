"""Asks guard models about texts.

Called by the steps that judge requests and answers. A guard that is served here is asked through the queue like any
caller's model, so it may be at zero: the call has an idempotency key, by which a later run of the step comes back to
the same job instead of starting another. Must not know what becomes of a text.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import structlog

from eventing.clock import Clock
from eventing.errors import BadRequest, Unavailable
from steps.validation.guard_forms import (
    SETTING,
    GuardSettings,
    GuardVerdict,
    Role,
    guard_call,
    verdict_of,
)

_log = structlog.get_logger()
PIECE_CHARS: Final = 8000
"""A longer text is judged in pieces, so that a guard's context holds each with its prompt."""
OVERLAP_CHARS: Final = 400
MOST_PIECES: Final = 64
_NO_VERDICT: Final = frozenset({400, 413, 422})
"""Statuses of an endpoint that will never answer this text."""
_RETRY_S: Final = 600
"""After this time a guard's job that failed is asked anew, under another key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """What asking needs. `url` is the endpoint of this installation, empty where there is none."""

    clock: Clock
    url: str = ""
    token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCall:
    """A call of a model that judges. `setting` names what asks; without a `url` it goes to this installation."""

    setting: str
    url: str | None
    path: str
    body: Mapping[str, Any]
    timeout_ms: int


class GuardClient:
    """Asks models behind OpenAI-compatible endpoints. Close it with `aclose`."""

    def __init__(self, guards: Guards) -> None:
        self._guards = guards
        self._headers = {"Authorization": f"Bearer {guards.token}"} if guards.token else {}
        self._session: aiohttp.ClientSession | None = None

    async def judge(
        self, settings: GuardSettings, role: Role, text: str, *, asker: str
    ) -> GuardVerdict:
        """The verdict on a text, piece by piece until one is not safe. `asker` names the job and its step. Raises
        `Unavailable` while the guard does not answer, and `BadRequest` without an endpoint.
        """
        pieces = pieces_of(text)
        if len(pieces) > MOST_PIECES:
            return GuardVerdict(is_clear=False)
        for piece in pieces:
            verdict = await self._ask(settings, role, piece, asker)
            if verdict.categories or not verdict.is_clear:
                return verdict
        return GuardVerdict()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _ask(
        self, settings: GuardSettings, role: Role, text: str, asker: str
    ) -> GuardVerdict:
        # Of the text itself and of a name that its author does not have: no text can hold its own mark.
        asked = "\0".join((asker, role, settings.model, text)).encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(asked).hexdigest()
        path, body = guard_call(settings, role, text, mark=f"====={digest[:16]}")
        call = ModelCall(
            setting=SETTING, url=settings.url, path=path, body=body, timeout_ms=settings.timeout_ms
        )
        answer = await self.ask(call, digest)
        return GuardVerdict(is_clear=False) if answer is None else verdict_of(settings, answer)

    async def ask(self, call: ModelCall, digest: str) -> Any:
        """The endpoint's JSON; None where it refuses the call. Calls of the same `digest` are one job. Raises
        `Unavailable` while the model does not answer, and `BadRequest` without an endpoint.
        """
        base = call.url or self._guards.url
        if not base:
            message = f"{call.setting}.url is missing: TORPOR_GUARD_URL is not set"
            raise BadRequest(message, f"{call.setting}.url")
        retry = self._guards.clock.wall_ms() // 1000 // _RETRY_S
        headers = {
            "Idempotency-Key": f"{call.setting}-{digest[:32]}-{retry}",
            "Cache-Control": "no-store",
        }
        url = f"{base.rstrip('/')}/{call.path}"
        return await self._post(url, dict(call.body), headers, call.timeout_ms)

    async def _post(
        self, url: str, body: dict[str, Any], headers: dict[str, str], timeout_ms: int
    ) -> Any:
        """The endpoint's JSON; None where it refuses the text. Raises `Unavailable`."""
        self._session = self._session or aiohttp.ClientSession()
        limit = aiohttp.ClientTimeout(total=timeout_ms / 1000)
        try:
            async with self._session.post(
                url,
                json=body,
                headers=self._headers | headers,
                timeout=limit,
                allow_redirects=False,
            ) as answer:
                if answer.status != 200:
                    _log.warning("no verdict", action="guard", status=answer.status)
                if answer.status in _NO_VERDICT:
                    return None
                if answer.status != 200:
                    raise Unavailable(f"the judging model's endpoint answered {answer.status}")
                return await answer.json(content_type=None)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise Unavailable("the judging model does not answer") from error


def pieces_of(text: str) -> Sequence[str]:
    """The text in pieces that overlap, so that what stands on a cut is whole in one of them."""
    if not text.strip():
        return ()
    step = PIECE_CHARS - OVERLAP_CHARS
    return [text[at : at + PIECE_CHARS] for at in range(0, max(len(text) - OVERLAP_CHARS, 1), step)]
