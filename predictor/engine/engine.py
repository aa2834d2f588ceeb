"""The interface between the predictor and its engine.

Called by `predictor.generation.generation` (queued jobs) and `predictor.serving.direct_call` (direct calls).
Implemented by `predictor.engine.vllm.engine`, `predictor.engine.upstream.engine` (a provider's endpoint) and
`predictor.engine.seeded_engine` (tokens from a seed, for tests).
Must not know the store, events or HTTP.
"""

from array import array
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Final, Protocol

import orjson

PhaseReporter = Callable[["ColdStartPhase"], None]
"""Called with each phase as it begins; must not block."""


class ColdStartPhase(StrEnum):
    """The phases of a predictor's start, in order."""

    SCHEDULE = "schedule"  #: requested; no process yet
    IMPORT = "import"  #: Python, the engine's libraries, its process and device
    WEIGHTS = "weights"  #: reading the model into memory
    COMPILE = "compile"  #: compiling, and profiling memory (nothing to do when both are off)
    WARM_UP = "warm_up"  #: KV cache, CUDA graphs, first dummy pass, tokenizer, templates
    READY = "ready"  #: can serve


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """What one turn of the engine gave.

    `token_ids` are the new sampled ids (checkpointed by the caller; empty for a replayed prefix and for chunks that
    carry no token). `chunk` is one OpenAI stream chunk (`chat.completion.chunk` or `text_completion`) as a plain
    dict, or the whole response body for calls that do not stream (`embeddings`); None when the turn shows nothing.
    A token may come some steps before the chunk that shows it (parsers hold text back), never after it.
    """

    token_ids: tuple[int, ...]
    chunk: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One OpenAI-style call, as in a Batch line: `url` is `/v1/chat/completions` and the like.

    `request_id` is unique among running requests: it identifies the request inside the engine.
    """

    request_id: str
    url: str
    body: Mapping[str, Any]
    wants_chunks: bool = True  #: False when only the whole body is needed
    tenant: str = ""  #: whose data it is; empty for a direct call
    idempotency_key: str = ""  #: the same for each attempt at one answer of a job
    lane: str = ""
    allows_fallback: bool = True  #: another provider may answer
    counts_throughout: bool = False  #: each chunk says the usage so far: the answer may be stopped
    starts_over: bool = False  #: an earlier attempt's answer broke off
    notes_prefix: bool = (
        False  #: another turn may follow: the last chunk has a `Prefix`, where ids are known
    )
    prefix: Mapping[str, Any] | None = None  #: that of the turn before
    turns: tuple["TurnIds", ...] = ()  #: of the turns so far, where all of them are known


@dataclass(frozen=True, slots=True)
class TurnIds:
    """A turn of the job: what was noted of its prompt, and the ids of its answer."""

    prefix: Mapping[str, Any]
    answer: tuple[int, ...]


EXTRA_USAGE: Final = "extra_usage"
"""Field of a chunk: tokens that an engine spent beside the answer, as `extra` of a job's usage lists them."""
PREFIX: Final = "prefix"
"""Field of a chunk, and of a turn's usage: what the next turn's prompt should begin with (`prefix_note`)."""
CACHE_SALT: Final = "cache_salt"
"""Field of a body: prompts with different salts share no prefix in an engine's cache."""
_BYTES_A_TOKEN: Final = 4
_DIGEST_BYTES: Final = 16
_TAIL: Final = 2
"""Ids at the end of a prompt that a tokenizer can cut in another way when text follows: two line ends, say."""


def prefix_note(
    prompt: Sequence[int], answer: Sequence[int], before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Number and digest of the ids of a prompt and its answer, the digest of the `prompt` alone, and its last ids;
    `kept` says whether the prompt begins with those of the turn `before`, so that an engine which has them in its cache
    need not compute them again.
    """
    note: dict[str, Any] = {
        "tokens": len(prompt) + len(answer),
        "digest": _digest([*prompt, *answer]),
        "prompt": _digest(prompt),
        "tail": [*prompt[-_TAIL:]],
    }
    if before is not None:
        count = int(before["tokens"])
        note["kept"] = len(prompt) >= count and _digest(prompt[:count]) == before["digest"]
    return note


def known_prefix(value: object) -> dict[str, Any] | None:
    """A `prefix_note`, read from a chunk or a record; None for anything else, as a provider may write."""
    if not isinstance(value, Mapping):
        return None
    tokens, digest, kept = (value.get(name) for name in ("tokens", "digest", "kept"))
    is_count = isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 0
    if not is_count or not _is_digest(digest):
        return None
    note = {"tokens": tokens, "digest": digest}
    prompt, tail = value.get("prompt"), value.get("tail")
    if _is_digest(prompt) and isinstance(tail, list) and all(map(_is_id, tail[: _TAIL + 1])):
        note |= {"prompt": prompt, "tail": tail[:_TAIL]}
    return note | {"kept": kept} if isinstance(kept, bool) else note


def appended_ids(rendered: Sequence[int], turns: Sequence[TurnIds]) -> list[int] | None:
    """The prompt after `turns` with the very ids of their prompts and answers, and between them what the template
    rendered: `rendered` is the same prompt as the template has it, which may write an answer in another way. None where
    it does not begin with those prompts, or does not show where an answer ends.
    """
    ids: list[int] = []
    at = 0
    for turn in turns:
        if not turn.answer:
            return None
        end, tail = turn.answer[-1], list(turn.prefix.get("tail") or ())
        while end in tail:
            tail.pop(0)
        more = int(turn.prefix["tokens"]) - len(turn.answer) - len(ids) - len(tail)
        if more < 0:
            return None
        ids += [*rendered[at : at + more], *tail]
        if _digest(ids) != turn.prefix.get("prompt") or end not in rendered[at + more :]:
            return None
        at = rendered.index(end, at + more) + 1
        ids += turn.answer
    return [*ids, *rendered[at:]]


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 2 * _DIGEST_BYTES


def _digest(ids: Sequence[int]) -> str:
    return blake2b(array("I", ids).tobytes(), digest_size=_DIGEST_BYTES).hexdigest()


def estimated_prompt_tokens(body: Mapping[str, Any]) -> int:
    """About how many tokens a call's prompt has, by its bytes."""
    content = body.get("messages") or body.get("prompt") or body.get("input") or ""
    return len(orjson.dumps(content)) // _BYTES_A_TOKEN + 1


def cache_salt(tenant: str, own: object = None) -> str:
    """What keeps a tenant's prefixes apart from all others', and within it those of its caller's `own` salt: how soon
    a first token comes, and `cached_tokens`, would say what another tenant has asked.
    """
    salted = f"{tenant}\0{own or ''}".encode("utf-8", "surrogatepass")
    return blake2b(salted, digest_size=16).hexdigest()


class Engine(Protocol):
    """A text engine: start, run many requests at once, stop."""

    @property
    def model_names(self) -> Sequence[str]:
        """Names that requests may put in `model`: the served name first, LoRA names after it."""

    @property
    def max_concurrency(self) -> int:
        """The useful batch: more concurrent requests do not raise the throughput."""

    @property
    def max_model_len(self) -> int:
        """Tokens that prompt and answer may have together; 0 before `start`."""

    @property
    def version(self) -> str:
        """The engine's version, for people and `GET /version`."""

    @property
    def device(self) -> str:
        """The device that it runs on, for people; known after `start`."""

    async def start(self, report: PhaseReporter) -> None:
        """Load the model. Raises `EngineStartError` with a message that says what to change."""

    async def stop(self) -> None:
        """End every process and free the memory. Safe to call twice, or before `start`."""

    def is_healthy(self) -> bool:
        """True while requests can be served; turns False within 2 s of the engine's death."""

    def validate(self, request: EngineRequest) -> None:
        """Raise `BadRequest` naming the field when this request can never be served.

        Checks everything that does not need the tokenizer: a prompt longer than the context is found by `run`,
        before its first step.
        """

    def can_resume(self, request: EngineRequest) -> bool:
        """True when generation may be continued from token ids.

        That is one plain answer: no grammar, no `n > 1`, no logprobs, no presence or frequency penalty (they count
        output tokens, and replayed ones are prompt to the engine).
        """

    def run(
        self, request: EngineRequest, prior_token_ids: Sequence[int]
    ) -> AsyncGenerator[DecodeStep, None]:
        """Generate; with `prior_token_ids` continue after them, counted as output.

        Always streams, whatever `stream` is in the body, except for what the engine cannot stream (vLLM:
        `prompt_logprobs`, beam search) and for callers that want no chunks: then one step may have the whole body.
        The last chunk of a stream has no choices and carries `usage`, requested or not: callers that forward chunks
        drop it unless `stream_options.include_usage` was set. `predictor.generation.assembly` builds the whole body
        from the chunks. The chunks of a continued run cover the whole answer again (so that parsers see it
        completely): the caller drops what was shown before.

        Raises `BadRequest` for an invalid request, `Overloaded` when the engine's own queue is full,
        `EngineRequestError` when this request failed and others go on, `EngineDeadError` when the engine has died.
        Closing the generator aborts the request and frees its slot.
        """
