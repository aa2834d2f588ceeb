"""What callers are shown of a search that stood before an answer: the call, its results, and citations. Pure.

Called by the views of responses and chat completions. A citation is shown only where the number that the model wrote
is that of a passage which it was given; an answer without any is attributed sentence by sentence to the passage that
has most of its words.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from eventing.job.answer_links import ANSWER_TEXTS
from eventing.job.job import Job
from eventing.job.passage import LinkFilter, last_user, text_of
from eventing.job.plan import PlannedStep, StepRecord, StepStatus

RETRIEVE: Final = "retrieve"
RESULTS: Final = "file_search_call.results"
_STATUSES: Final = {
    StepStatus.QUEUED: "in_progress",
    StepStatus.IN_PROGRESS: "searching",
    StepStatus.COMPLETED: "completed",
}
_MARKER: Final = re.compile(r"[\[\u3010](\d{1,3})(?:\u2020[^\]\u3011\n]{0,100})?[\]\u3011]")
_SENTENCE: Final = re.compile(r"[^.!?\n]+[.!?]*")
_WORD: Final = re.compile(r"\w{4,}")
_FEWEST_WORDS: Final = 3
_SHARE: Final = 0.6
"""Words of a sentence that stand in the passage it is attributed to."""
_QUERY_CHARACTERS: Final = 2000

Item = dict[str, Any]


def planned_search(job: Job) -> PlannedStep | None:
    """The step that retrieves, if the job has one."""
    return job.plan.step(RETRIEVE) if job.plan else None


class LinkFilters:
    """`shown_text` for the choices of a stream, whose texts come in pieces."""

    def __init__(self, hosts: Collection[str]) -> None:
        self._hosts = hosts
        self._filters: dict[tuple[int, str], LinkFilter] = {}

    def start_over(self) -> None:
        """What was held back is void: the answer begins anew."""
        self._filters.clear()

    def rest(self) -> Iterator[dict[str, Any]]:
        """Choices with what was held back, where the texts have ended without a word of it."""
        for (index, name), links in self._filters.items():
            if text := links.rest():
                yield {"index": index, "delta": {name: text}}

    def shown(self, choice: dict[str, Any]) -> dict[str, Any]:
        """The choice with what can be shown of its texts; with the rest, once they have ended."""
        delta = choice.get("delta")
        if not isinstance(delta, Mapping):
            return choice
        is_over = bool(choice.get("finish_reason") or delta.get("tool_calls"))
        texts: dict[str, str] = {}
        for name in ANSWER_TEXTS:
            links = self._filters.setdefault(
                (choice.get("index", 0), name), LinkFilter(self._hosts)
            )
            text = links.feed(delta.get(name) or "")
            if is_over or (name != "content" and delta.get("content")):
                text += links.rest()
            if text or delta.get(name):
                texts[name] = text
        return {**choice, "delta": {**delta, **texts}} if texts else choice


def search_item(job: Job, record: Mapping[str, Any], status: str = "") -> Item:
    """The `file_search_call` of a response; at a moment of its stream with this `status`, and without results."""
    step = _record_of(job)
    is_told = bool(status) or RESULTS not in record.get("include", ())
    return {
        "id": f"fs_{job.id.removeprefix('job_')}",
        "type": "file_search_call",
        "status": status or _STATUSES.get(step.status, "failed"),
        "queries": [_question(job)],
        "results": None if is_told or step.status is not StepStatus.COMPLETED else _results(step),
    }


def annotations(job: Job, text: str) -> list[Item]:
    """The citations of an answer's text."""
    if planned_search(job) is None:
        return []
    step = _record_of(job)
    sources: Sequence[Mapping[str, Any]] = step.detail.get("sources") or ()
    if not sources:
        return []
    marked = [
        _citation(sources[number - 1], match.start())
        for match in _MARKER.finditer(text)
        if 1 <= (number := int(match[1])) <= len(sources)
    ]
    return marked or _attributed(text, sources)


def _attributed(text: str, sources: Sequence[Mapping[str, Any]]) -> list[Item]:
    known = [frozenset(_words(source.get("text", ""))) for source in sources]
    found = []
    for match in _SENTENCE.finditer(text):
        words = set(_words(match[0]))
        shares = [len(words & each) / len(words) for each in known] if words else []
        best = max(shares, default=0.0)
        if len(words) >= _FEWEST_WORDS and best >= _SHARE:
            found.append(_citation(sources[shares.index(best)], match.end()))
    return found


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _citation(source: Mapping[str, Any], index: int) -> Item:
    return {
        "type": "file_citation",
        "file_id": source["file_id"],
        "filename": source["filename"],
        "index": index,
    }


def _record_of(job: Job) -> StepRecord:
    return next((step for step in job.steps if step.step == RETRIEVE), StepRecord(step=RETRIEVE))


def _results(step: StepRecord) -> list[Item]:
    sources: Sequence[Mapping[str, Any]] = step.detail.get("sources") or ()
    told = ("file_id", "filename", "score", "text")
    return [
        {name: source.get(name) for name in told} | {"attributes": source.get("attributes", {})}
        for source in sources
    ]


def _question(job: Job) -> str:
    messages = job.request.body.get("messages")
    place = last_user(messages) if isinstance(messages, list) else None
    if not isinstance(messages, list) or place is None:
        return ""
    return text_of(messages[place]).strip()[-_QUERY_CHARACTERS:][:200]
