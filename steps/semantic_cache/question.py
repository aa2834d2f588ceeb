"""The question of a request, and a digest of everything else in it. Pure.

Called by the step for its job, and by the writer for a job that ended, which must come to the same. Two requests may
share an answer only in one partition: same tenant, model, plan, API, system text, tools, format, sampling and
embedder; the words of the last user text are all that may differ.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from eventing.job.cache.key import canonical_body

LONGEST: Final = 2000
"""Characters of a question; a longer text holds more than a question."""
_BEFORE: Final = frozenset(("system", "developer"))


@dataclass(frozen=True, slots=True)
class Question:
    """The last user text, and the partition in which its answer is looked for."""

    text: str
    partition: str


def question_of(
    url: str, body: Mapping[str, Any], *, tenant: str, plan_version: str, api: str, revision: str
) -> Question | str:
    """The question of a chat's first turn, or why there is none. `revision` is the embedder's."""
    if url != "/v1/chat/completions":
        return "api"
    messages = body.get("messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        return "api"
    *before, last = messages
    if any(not isinstance(m, Mapping) or m.get("role") not in _BEFORE for m in before):
        return "not the first turn"
    if not isinstance(last, Mapping) or last.get("role") != "user":
        return "not the first turn"
    text = _only_text(last.get("content"))
    if not text or len(text) > LONGEST:
        return "not one text"
    rest = canonical_body(url, {**body, "messages": [*before, {**last, "content": ""}]})
    record = [tenant, url, api, plan_version, revision, rest]
    digest = hashlib.sha256(orjson.dumps(record, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return Question(text, digest[:32])


def _only_text(content: Any) -> str:
    """The text of a message that holds nothing else; empty for one with an image, a file or several parts."""
    if isinstance(content, str):
        return content.strip()
    if isinstance(content, Sequence) and len(content) == 1 and isinstance(content[0], Mapping):
        part = content[0]
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            return str(part["text"]).strip()
    return ""
