"""What a critic is asked, and what it says. Pure.

Called by `api.audit.round` and `api.audit.audits`.
"""

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from eventing.job.job import CHAT_URLS, Job, JobRequest
from eventing.job.moderation.claim import INSTRUCTIONS, Claim, claim_messages, is_supported
from eventing.job.passage import last_user, text_of

_CHARACTERS_A_TOKEN: Final = 3


class Verdict(StrEnum):
    """What became of an audit."""

    SUPPORTED = "supported"  #: every claim stands in the passages
    UNSUPPORTED = "unsupported"  #: a claim does not
    UNCLEAR = "unclear"  #: the critic gave no verdict
    NO_PASSAGES = "no_passages"  #: nothing was found to compare with
    TOO_LONG = "too_long"  #: answer and passages do not fit into the critic's context
    GONE = "gone"  #: the job was deleted before
    FAILED = "failed"  #: the critic's job failed

    @property
    def is_counted(self) -> bool:
        """True for a verdict that the rate is made of."""
        return self in (Verdict.SUPPORTED, Verdict.UNSUPPORTED)


def critic_version(critic: str, revision: str, golden_digest: str, max_tokens: int) -> str:
    """Names what a critic's verdicts come from: model, weights and question, and the golden set they are judged by."""
    parts = "\0".join((critic, revision, INSTRUCTIONS, golden_digest, str(max_tokens)))
    return hashlib.sha256(parts.encode()).hexdigest()[:12]


def critic_request(critic: str, claim: Claim, mark: str, max_tokens: int) -> JobRequest:
    """The call that asks for a verdict. Without passages a search puts them into it."""
    body = {
        "model": critic,
        "messages": claim_messages(claim, mark),
        "temperature": 0,
        "max_tokens": max_tokens,
    }
    return JobRequest(url=CHAT_URLS[0], body=body)


def fits(claim: Claim, context_tokens: int) -> bool:
    """True when the claim should fit into so many tokens, beside the instructions."""
    return (claim.characters + len(INSTRUCTIONS)) / _CHARACTERS_A_TOKEN <= context_tokens


def verdict_of(text: str) -> Verdict:
    """The verdict in a critic's answer."""
    match is_supported(text):
        case True:
            return Verdict.SUPPORTED
        case False:
            return Verdict.UNSUPPORTED
        case None:
            return Verdict.UNCLEAR


def question_of(job: Job) -> str:
    """The text of the last user message."""
    messages = job.request.body.get("messages")
    place = last_user(messages) if isinstance(messages, list) else None
    return text_of(messages[place]) if isinstance(messages, list) and place is not None else ""


def answer_of(job: Job | None) -> str:
    """The texts of an answer, of all its choices."""
    choices = (job.result or {}).get("choices") if job else None
    texts = [_content(choice) for choice in choices or () if isinstance(choice, Mapping)]
    return "\n\n".join(filter(None, texts))


def _content(choice: Mapping[str, Any]) -> str:
    message = choice.get("message")
    content = message.get("content") if isinstance(message, Mapping) else None
    return content.strip() if isinstance(content, str) else ""
