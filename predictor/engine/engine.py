"""What the predictor asks of an engine, and nothing about which engine it is.

Called by `predictor.generation.generation` (queued jobs) and `predictor.serving.direct_call` (callers that wait).
Implemented by `predictor.engine.vllm.engine` (the real one) and `predictor.engine.seeded_engine` (tokens from a
seed, for tests). Must not know the store, events or HTTP.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

PhaseReporter = Callable[["ColdStartPhase"], None]
"""Told each phase as it begins; must not block."""


class ColdStartPhase(StrEnum):
    """Where a starting predictor is, in order."""

    SCHEDULE = "schedule"  #: asked for; no process yet
    IMPORT = "import"  #: Python, the engine's libraries, its process and device
    WEIGHTS = "weights"  #: reading the model into memory
    COMPILE = "compile"  #: compiling, and profiling memory (nothing to do when both are off)
    WARM_UP = "warm_up"  #: KV cache, CUDA graphs, first dummy pass, tokenizer, templates
    READY = "ready"  #: can serve


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """What one turn of the engine gave.

    `token_ids` are the new sampled ids (checkpointed by the caller; empty for a replayed prefix and
    for chunks that carry no token). `chunk` is one OpenAI stream chunk (`chat.completion.chunk` or
    `text_completion`) as a plain dict, or the whole response body for calls that do not stream
    (`embeddings`); None when the turn shows nothing. A token may come some steps before the
    chunk that shows it (parsers hold text back), never after it.
    """

    token_ids: tuple[int, ...]
    chunk: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One OpenAI-style call, as in a Batch line: `url` is `/v1/chat/completions` and the like.

    `request_id` is unique among the running ones: it names the request inside the engine.
    """

    request_id: str
    url: str
    body: Mapping[str, Any]
    wants_chunks: bool = True  #: False where only the whole body is of use


class Engine(Protocol):
    """A text engine with a life: start, run many requests at once, stop."""

    @property
    def model_names(self) -> Sequence[str]:
        """Names that requests may put in `model`: the served name first, LoRA names after it."""

    @property
    def max_concurrency(self) -> int:
        """The useful batch: more requests than this gain nothing."""

    @property
    def max_model_len(self) -> int:
        """Tokens that prompt and answer may have together; 0 before `start`."""

    @property
    def version(self) -> str:
        """The engine's own, for people and `GET /version`."""

    @property
    def device(self) -> str:
        """What it thinks on, for people; asked after `start`."""

    async def start(self, report: PhaseReporter) -> None:
        """Load the model. Raises `EngineStartError` with a message that says what to change."""

    async def stop(self) -> None:
        """End every process and free the memory. Safe to call twice, or before `start`."""

    def is_healthy(self) -> bool:
        """True while requests can be served; turns False within 2 s of the engine's death."""

    def validate(self, request: EngineRequest) -> None:
        """Raise `BadRequest` naming the field when this request can never be served.

        Sees everything but what needs the tokenizer: a prompt longer than the context is found by
        `run`, before its first step.
        """

    def can_resume(self, request: EngineRequest) -> bool:
        """True when generation may be continued from token ids.

        That is one plain answer: no grammar, no `n > 1`, no logprobs, no presence or frequency
        penalty (they count output tokens, and a replayed one is prompt to the engine).
        """

    def run(
        self, request: EngineRequest, prior_token_ids: Sequence[int]
    ) -> AsyncGenerator[DecodeStep, None]:
        """Generate; with `prior_token_ids` go on after them, counted as output already made.

        Streams, whatever `stream` says in the body, but for what the engine cannot stream (vLLM:
        `prompt_logprobs`, beam search) and where the caller wants no chunks: then one step may hold
        the whole body. The last chunk of a stream has no choices and
        carries `usage`, asked for or not: callers that pass chunks on drop it unless
        `stream_options.include_usage` was set. `predictor.generation.assembly` makes the whole body out of
        the chunks. The chunks of a continued run cover the whole answer again (so that
        parsers see it whole): the caller drops what was shown before.

        Raises `BadRequest` for this request's fault, `Overloaded` when the engine's own queue is
        full, `EngineRequestError` when this one failed and others go on, `EngineDeadError` when the
        engine is gone. Closing the generator aborts the request and frees its slot.
        """
