"""What a chat completion shows of a job whose model calls tools of servers: the loop is hidden. Pure.

Called by `api.view.chunk` (streams) and `api.view.outcome` (whole answers). A chat completion is one message: it has
the texts of all turns, one after the other, and of the calls those of the caller's own functions, which end it. Which
calls were made is told beside it, in `torpor.tool_calls`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from eventing.cloudevent.result_event import tools_used
from eventing.job.answer_links import ANSWER_TEXTS, shown_text
from eventing.job.call.reasoning import with_both_names
from eventing.job.job import Job
from eventing.job.plan import TOOLS_STEP

_BETWEEN: Final = "\n\n"
_TEXTS: Final = ("reasoning", "content")


def has_loop(job: Job) -> bool:
    """True where calls of the answer may be run by servers."""
    return job.plan is not None and job.plan.step(TOOLS_STEP) is not None


def own_functions(job: Job) -> frozenset[str]:
    """The functions that the caller runs."""
    tools = job.request.body.get("tools") or ()
    named = (tool.get("function") for tool in tools if isinstance(tool, Mapping))
    return frozenset(str(each.get("name")) for each in named if isinstance(each, Mapping))


def with_turns(job: Job, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The whole answer of an ended job, with the texts of its turns before, the sum of their usage, and what it
    called.
    """
    choices = body.get("choices")
    if not (has_loop(job) and isinstance(choices, list) and choices):
        return body
    own = own_functions(job)
    before = [turn.message for turn in job.turns if not turn.ends]
    shown = [_shown(job, each) for each in before]
    first = _whole_choice(shown, choices[0], own)
    told = {"torpor": torpor_of(job)} if job.turns else {}
    return {
        **body,
        "choices": [first, *choices[1:]],
        "usage": job.usage or body.get("usage"),
        **told,
    }


def _shown(job: Job, message: Mapping[str, Any]) -> dict[str, Any]:
    """The message of a turn, without links that tools may have planted."""
    found = {name: message.get(name) for name in ANSWER_TEXTS}
    texts = {name: shown_text(job, each) for name, each in found.items() if isinstance(each, str)}
    return {**message, **texts}


def torpor_of(job: Job) -> dict[str, Any]:
    """What was called."""
    used = tools_used(job)
    return {"tool_calls": used["calls"], "stopped_by": used["stopped_by"]}


def _whole_choice(
    before: Sequence[Mapping[str, Any]], choice: Mapping[str, Any], own: frozenset[str]
) -> dict[str, Any]:
    message = dict(choice.get("message") or {})
    for name in _TEXTS:
        texts = [text for each in (*before, message) if (text := _text(each, name))]
        if texts:
            joined = _BETWEEN.join(texts)
            message |= {name: joined} if name == "content" else with_both_names({name: joined})
    calls = [each for each in message.pop("tool_calls", ()) if _name(each) in own]
    if calls:
        message["tool_calls"] = calls
    return {**choice, "message": message}


def _text(message: Mapping[str, Any], name: str) -> str:
    older = message.get("reasoning_content") if name == "reasoning" else None
    return str(message.get(name) or older or "")


def _name(call: Mapping[str, Any]) -> str:
    return str((call.get("function") or {}).get("name") or "")


class ChatTurns:
    """Of a stream: what its choices show. How it ended is said once, when the job has."""

    def __init__(self, job: Job) -> None:
        self._own = own_functions(job)
        self._places: dict[int, int | None] = {}  # of a turn's calls: their number in the answer
        self._shown_calls = 0
        self._has_text: set[str] = set()
        self._is_behind: set[str] = set()

    def begin_turn(self) -> None:
        """A turn was committed: the texts of the next one stand behind its own."""
        self._places.clear()
        self._is_behind = set(self._has_text)

    def start_over(self) -> None:
        """The present turn is void, and showed nothing."""
        self._places.clear()

    def shown(self, choice: Mapping[str, Any]) -> dict[str, Any] | None:
        """The choice as it is shown; None for one that shows nothing."""
        delta = {**(choice.get("delta") or {})}
        for name in [each for each in delta if isinstance(delta[each], str) and delta[each]]:
            kind = "reasoning" if name.startswith("reasoning") else name
            if kind in self._is_behind:
                delta[name] = _BETWEEN + delta[name]
                self._is_behind.discard(kind)
            self._has_text.add(kind)
        calls = [shown for call in delta.pop("tool_calls", ()) if (shown := self._call(call))]
        if calls:
            delta["tool_calls"] = calls
        rest = {
            name: value
            for name, value in choice.items()
            if name not in ("delta", "finish_reason", "stop_reason")
        }
        if not delta and rest.keys() <= {"index"}:
            return None
        return {**rest, "delta": delta}

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any] | None:
        index = int(call.get("index", 0))
        if index not in self._places:
            self._places[index] = self._shown_calls if _name(call) in self._own else None
            self._shown_calls += self._places[index] is not None
        place = self._places[index]
        return None if place is None else {**call, "index": place}
