"""A model that says whether the passages support an answer, as the setting `checker` of the step `ground` has it.

checker: {model: judge}      # served here, or with `url` elsewhere

Called by the step. It is asked as guards are: through the queue where it is served here, so it may be at zero.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import Field

from eventing.job.moderation.claim import Claim, claim_messages, is_supported, unsupported_quotes
from steps.grounding.support import Span
from steps.validation.model_client import (
    ModelClient,
    ModelSettings,
    digest_of,
    said_in,
)

SETTING: Final = "checker"


class CheckerSettings(ModelSettings):
    """A model that compares an answer with its passages."""

    SETTING = SETTING

    max_tokens: int = Field(512, ge=1, le=32_768)
    """Longest answer; more for a model that thinks first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What the checker said of one answer; `unsupported` are the words that it quoted, where they stand in it."""

    verdict: Literal["supported", "unsupported", "unclear"]
    unsupported: tuple[Span, ...] = ()


async def check(
    client: ModelClient, settings: CheckerSettings, claim: Claim, *, asker: str
) -> Checked:
    """The checker's verdict. `asker` names the job and its attempt: a later run of the step comes back to the same
    answer. Raises `Unavailable`, and `BadRequest` without an endpoint.
    """
    digest = digest_of(asker, settings.model, claim.question, claim.answer, *claim.passages)
    body = {
        "model": settings.model,
        "messages": claim_messages(claim, digest[:16]),
        "temperature": 0,
        "max_tokens": settings.max_tokens,
    }
    answer = await client.ask(settings, "chat/completions", body, digest)
    return checked(claim.answer, _said(answer))


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
    said = said_in(answer)
    is_whole = said is not None and answer["choices"][0].get("finish_reason") in ("stop", None)
    return said if said is not None and is_whole else ""
