"""A model that says whether the passages support an answer, as the setting `checker` of the step `ground` has it.

checker: {model: judge}      # served here, or with `url` elsewhere

Called by the step. It is asked as guards are: through the queue where it is served here, so it may be at zero.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eventing.errors import BadRequest
from eventing.job.moderation.claim import Claim, claim_messages, is_supported, unsupported_quotes
from eventing.process.setting import HttpUrl
from steps.grounding.support import Span
from steps.validation.guard import GuardClient, ModelCall

SETTING: Final = "checker"


class CheckerSettings(BaseModel):
    """A model that compares an answer with its passages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1, max_length=128)
    url: HttpUrl | None = None
    """An OpenAI-compatible endpoint up to `/v1`; without it the api of this installation, `TORPOR_GUARD_URL`."""
    timeout_ms: int = Field(60_000, ge=100, le=3_600_000)
    """Longest wait for its answer; after it the step is unavailable, and asks again later."""
    max_tokens: int = Field(512, ge=1, le=32_768)
    """Longest answer; more for a model that thinks first."""


def parse_checker(value: Any) -> CheckerSettings | None:
    """The setting `checker`. Raises `BadRequest` naming the field."""
    if value is None:
        return None
    try:
        return CheckerSettings.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join([SETTING, *(str(part) for part in first["loc"])])
        raise BadRequest(f"{where}: {first['msg']}", where) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What the checker said of one answer; `unsupported` are the words that it quoted, where they stand in it."""

    verdict: Literal["supported", "unsupported", "unclear"]
    unsupported: tuple[Span, ...] = ()


async def check(
    client: GuardClient, settings: CheckerSettings, claim: Claim, *, asker: str
) -> Checked:
    """The checker's verdict. `asker` names the job and its attempt: a later run of the step comes back to the same
    answer. Raises `Unavailable`, and `BadRequest` without an endpoint.
    """
    # Of what is judged and of a name that its authors do not have: no text can hold its own mark.
    parts = (asker, settings.model, claim.question, claim.answer, *claim.passages)
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
    body = {
        "model": settings.model,
        "messages": claim_messages(claim, digest[:16]),
        "temperature": 0,
        "max_tokens": settings.max_tokens,
    }
    call = ModelCall(
        setting=SETTING,
        url=settings.url,
        path="chat/completions",
        body=body,
        timeout_ms=settings.timeout_ms,
    )
    return checked(claim.answer, _said(await client.ask(call, digest)))


def checked(answer: str, said: str) -> Checked:
    """What a model's words say of an answer. Quotes that do not stand in it are left out."""
    verdict = is_supported(said)
    if verdict is None:
        return Checked(verdict="unclear")
    if verdict:
        return Checked(verdict="supported")
    places = [(answer.find(quote), quote) for quote in unsupported_quotes(said)]
    spans = {Span(at, at + len(quote)) for at, quote in places if at >= 0}
    return Checked(
        verdict="unsupported", unsupported=tuple(sorted(spans, key=lambda span: span.start))
    )


def _said(answer: Any) -> str:
    """The text of an answer that ended by itself; empty for any other, which is no verdict."""
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, Mapping) or choice.get("finish_reason") not in ("stop", None):
        return ""
    message = choice.get("message")
    content = message.get("content") if isinstance(message, Mapping) else None
    return content if isinstance(content, str) else ""
