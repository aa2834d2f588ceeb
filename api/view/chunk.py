"""OpenAI stream chunks from a job's token stream. Pure.

Called by the streaming forms of chat completions and completions. The same stream always gives the same chunks.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import orjson

from api.limit.service_tier import used_tier
from api.view.items.chat_turns import ChatTurns, has_loop, torpor_of
from api.view.items.retrieval import LinkFilters
from api.view.outcome import CallFailed, answer_id, answer_of, grounding_in, moderation_in
from eventing.job.answer_links import link_hosts
from eventing.job.call.reasoning import choice_with_both_names
from eventing.job.job import CONTENT_FILTER, Job
from eventing.job.stream import EntryKind, StreamEntry

_PIECE_CHARS: Final = 8_000
"""Of a text, in a chunk: JSON may take six bytes for a character, and a thought stands there twice."""


def wants_usage_throughout(body: Mapping[str, Any]) -> bool:
    """Whether every chunk of the call's stream tells the usage so far (vLLM's `continuous_usage_stats`)."""
    options = body.get("stream_options") or {}
    return bool(options.get("include_usage") and options.get("continuous_usage_stats"))


class Restarted(CallFailed):
    """A new attempt had to start from the first token after text was shown; a stream cannot take text back."""

    def __init__(self) -> None:
        super().__init__(
            "the answer had to be started over; ask the job for its result", 500, "restarted"
        )


class Chunker:
    """The chunks of one job's stream."""

    def __init__(self, job: Job, *, has_usage: bool = False) -> None:
        """`has_usage`: the call asked for it, at the end or, by its job's `stream_options`, in every chunk."""
        self._is_chat = job.request.url == "/v1/chat/completions"
        self._base = {
            "id": answer_id(job),
            "object": "chat.completion.chunk" if self._is_chat else "text_completion",
            "created": job.created_ms // 1000,
            "model": job.answered_by,
        } | ({"usage": None} if has_usage else {})
        if tier := used_tier(job):
            self._base["service_tier"] = tier
        self._spoken: set[int] = set()
        self._is_turn_shown = False  # something of the present turn
        self._turns = ChatTurns(job) if self._is_chat and has_loop(job) else None
        self._usage: Mapping[str, Any] | None = None
        hosts = link_hosts(job)
        self._links = None if hosts is None or not self._is_chat else LinkFilters(hosts)

    def name_model(self, job: Job) -> None:
        """The job as it is now: a step may have chosen another model."""
        self._base["model"] = job.answered_by

    def chunks(self, entry: StreamEntry) -> Iterator[bytes]:
        """The chunks for an entry of the stream. Raises `Restarted`."""
        if entry.kind is EntryKind.ATTEMPT and entry.is_restart and self._is_turn_shown:
            raise Restarted
        if entry.kind is EntryKind.ATTEMPT and entry.is_restart:
            if self._turns is not None:
                self._turns.start_over()
            if self._links is not None:
                self._links.start_over()
        if entry.kind is EntryKind.TURN:
            yield from self._held_back()
            self._begin_turn()
        if entry.kind is not EntryKind.TOKENS or not entry.delta:
            return
        for choice in self._shown(orjson.loads(entry.delta)):
            self._is_turn_shown = True
            prompt = (
                {"prompt_token_ids": choice.pop("prompt_token_ids", None)} if self._is_chat else {}
            )
            self._usage = choice.pop("usage", None) or self._usage
            prompt |= {"usage": self._usage}
            extra = {name: value for name, value in prompt.items() if value is not None}
            yield self._dump([self._whole(choice)], **extra)

    def _held_back(self) -> Iterator[bytes]:
        """What of the texts was held back for their links, where no piece of the model's said that they had ended."""
        for choice in self._links.rest() if self._links else ():
            told = choice if self._turns is None else self._turns.shown(choice)
            if told is not None:
                yield self._dump([self._whole(told)])

    def _begin_turn(self) -> None:
        self._is_turn_shown = False
        if self._turns is not None:
            self._turns.begin_turn()

    def _shown(self, choices: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The choices without links that passages and tools planted, and without calls that servers run."""
        for choice in choices:
            told: dict[str, Any] | None = (
                choice if self._links is None else self._links.shown(choice)
            )
            if told is not None and self._turns is not None:
                told = self._turns.shown(told)
            if told is not None:
                yield told

    def _turns_end(self, job: Job) -> Iterator[bytes]:
        """How the answer of a job with tools ended, and what it called."""
        said = ((job.result or {}).get("choices") or [{}])[0]
        told = {"torpor": torpor_of(job)} if job.turns else {}
        reason = said.get("finish_reason") or "stop"
        yield self._dump([self._whole({"index": 0, "delta": {}, "finish_reason": reason})], **told)

    def unshown(self, job: Job) -> Iterator[bytes]:
        """The answer of the ended `job`, one chunk a choice, when none of it was streamed: its tokens are no longer
        stored, or its predictor does not stream.
        """
        if self._spoken:
            yield from self._held_back()
            if job.incomplete:  # the rest is withheld
                for index in sorted(self._spoken):
                    empty: dict[str, Any] = {"delta": {}} if self._is_chat else {"text": ""}
                    yield self._dump(
                        [
                            {
                                "index": index,
                                **empty,
                                "finish_reason": CONTENT_FILTER,
                                "logprobs": None,
                            }
                        ]
                    )
            elif self._turns is not None:
                yield from self._turns_end(job)
            return
        extra = {"usage": job.usage} if wants_usage_throughout(job.request.body) else {}
        for choice in answer_of(job).get("choices") or ():
            kept = {"index": 0, **choice}
            if self._is_chat:
                kept["delta"] = delta_of(kept.pop("message", None) or {})
            for piece in _pieces(kept, is_chat=self._is_chat):
                yield self._dump([self._whole(piece)], **extra)

    def moderation(self, job: Job) -> Iterator[bytes]:
        """The chunk that says what was found in the request and the answer, where the call asked for it."""
        if found := moderation_in(job):
            yield self._dump([], moderation=found)

    def grounding(self, job: Job) -> Iterator[bytes]:
        """The chunk that says how far the passages support the answer, where that is checked."""
        if found := grounding_in(job):
            yield self._dump([], grounding=found)

    def usage(self, usage: Mapping[str, Any] | None) -> bytes:
        """The last chunk of a stream that requested usage."""
        return self._dump([], usage=usage)

    def _whole(self, choice: dict[str, Any]) -> dict[str, Any]:
        index = choice.get("index", 0)
        if self._is_chat and index not in self._spoken:
            choice["delta"] = {"role": "assistant", **choice.get("delta", {})}
        self._spoken.add(index)
        return {"finish_reason": None, "logprobs": None, **choice_with_both_names(choice)}

    def _dump(self, choices: list[dict[str, Any]], **extra: Any) -> bytes:
        return orjson.dumps({**self._base, "choices": choices, **extra})


def pieces_of(text: str) -> Iterator[str]:
    """A text in pieces that each fit into a line."""
    for start in range(0, len(text), _PIECE_CHARS):
        yield text[start : start + _PIECE_CHARS]


def _pieces(choice: dict[str, Any], *, is_chat: bool) -> Iterator[dict[str, Any]]:
    """A whole choice as chunks whose texts fit into a line: the thought, the answer, then what else it has."""
    texts, answer = (choice["delta"], "content") if is_chat else (choice, "text")
    thought = texts.get("reasoning") or texts.get("reasoning_content") or ""
    told = {"reasoning": thought, answer: texts.get(answer) or ""}
    if sum(map(len, told.values())) <= _PIECE_CHARS:
        yield choice
        return
    for name, text in told.items():
        for part in pieces_of(text):
            piece = {name: part}
            yield {"index": choice["index"], **({"delta": piece} if is_chat else piece)}
    if not is_chat:
        yield choice | {"text": ""}
        return
    shown = ("role", "content", "reasoning", "reasoning_content")
    yield choice | {"delta": {key: each for key, each in texts.items() if key not in shown}}


def delta_of(message: Mapping[str, Any]) -> dict[str, Any]:
    """A whole message as one delta, in which tool calls are numbered."""
    calls = message.get("tool_calls")
    numbered = [{"index": index, **call} for index, call in enumerate(calls or ())]
    return {**message, "tool_calls": numbered} if calls else dict(message)
