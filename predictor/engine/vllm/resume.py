"""Continues a half-finished answer inside vLLM's serving layer.

Called by `predictor.engine.vllm.serving`. `ResumingClient` stands between vLLM's OpenAI serving classes and
`AsyncLLM`: it reports every sampled id to the run's `ResumeBuffer`, and when the buffer has ids of an earlier
attempt it replays those first and lets the engine continue after them. The serving layer sees one answer from its
first token, so its reasoning parsers, tool parsers and usage counts are right without knowing of the seam. Imports
vLLM: load it only where vLLM is used.

Text is made by vLLM's own incremental detokenizer over prompt, replayed and new ids in one go, so a multi-byte
character or a stop string across the seam comes out as without one.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: F401  (first: vLLM's circular imports)
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from predictor.engine.engine import TurnIds, appended_ids
from predictor.errors import EngineRequestError

_YIELD_EVERY: Final = 256
"""Replayed tokens after which other tasks run; a token takes 20 microseconds."""


class ResumeBuffer:
    """The token ids of one run: those of earlier attempts, and a queue for the new ones."""

    def __init__(
        self,
        prior: Sequence[int],
        record: Callable[[tuple[int, ...]], None],
        turns: Sequence[TurnIds] = (),
    ) -> None:
        self.prior: Final = tuple(prior)
        self.turns: Final = turns
        self.record: Final = record
        self.prompt: Sequence[int] = ()  #: the prompt's ids
        self.failure: Exception | None = None  #: the engine's exception, before it became JSON


CURRENT_BUFFER: ContextVar[ResumeBuffer] = ContextVar("current_buffer")
"""Set around each call of the serving layer; its `generate` runs in that context."""


@dataclass(frozen=True, slots=True)
class ResumedEnding:
    """The finish reason of an answer, in vLLM's terms."""

    finish_reason: str
    stop_reason: int | str | None = None


class ResumingClient:
    """An `EngineClient` that delegates to its `AsyncLLM` except for `generate`."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[Any, None]:
        """As `EngineClient.generate`, with the current buffer's ids first."""
        buffer = CURRENT_BUFFER.get(None)
        if buffer is None:
            plain: AsyncGenerator[Any, None] = self._inner.generate(
                prompt, sampling_params, request_id, **options
            )
            return plain
        return self._buffered(buffer, prompt, sampling_params, request_id, options)

    async def _buffered(
        self,
        buffer: ResumeBuffer,
        prompt: Any,
        params: SamplingParams,
        request_id: str,
        options: Mapping[str, Any],
    ) -> AsyncGenerator[Any, None]:
        if buffer.turns:
            prompt, params = _after_turns(self._inner, prompt, params, buffer.turns)
        buffer.prompt = _ids_of(prompt)
        try:
            if buffer.prior:
                source = self._resumed(buffer, prompt, params, request_id, options)
            else:
                source = self._inner.generate(prompt, params, request_id, **options)
            try:
                async for output in source:
                    yield output if buffer.prior else _recorded(buffer, output)
            finally:
                await source.aclose()  # closing early aborts the request in the engine
        except Exception as error:
            buffer.failure = error
            raise

    async def _resumed(
        self,
        buffer: ResumeBuffer,
        prompt: Any,
        params: SamplingParams,
        request_id: str,
        options: Mapping[str, Any],
    ) -> AsyncGenerator[Any, None]:
        if params.n != 1 or params.output_kind is not RequestOutputKind.DELTA:
            raise EngineRequestError("only one streamed answer can be continued")
        answer = ResumedAnswer(self._inner, prompt, params, request_id)
        ending: ResumedEnding | None = None
        for position, token_id in enumerate(buffer.prior):
            if position % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            ending = answer.ending_at(token_id)
            yield answer.add([token_id], ending)
            if ending is not None or answer.is_over:
                return  # the earlier attempt died between its last token and its result
        inner = self._inner.generate(
            {**prompt, "prompt_token_ids": [*answer.prompt_token_ids, *buffer.prior]},
            _remaining(params, len(buffer.prior)),
            request_id,
            **options,
        )
        try:
            async for output in inner:
                completion = output.outputs[0]
                buffer.record(tuple(completion.token_ids))
                yield answer.add(completion.token_ids, _ending_of(completion), output)
                if answer.is_over:
                    return
        finally:
            await inner.aclose()


class ResumedAnswer:
    """One answer as text, token by token, for replayed and new tokens alike."""

    def __init__(self, llm: Any, prompt: Any, params: SamplingParams, request_id: str) -> None:
        self.prompt_token_ids: Final[list[int]] = list(prompt["prompt_token_ids"])
        self.is_over = False
        self._request_id = request_id
        self._prompt_text: str | None = prompt.get("prompt")
        self._max_tokens: int = params.max_tokens or 0
        # A copy, because the engine fills in the model's own end tokens, and only on its own copy.
        self._params = params.clone()
        self._params.update_from_generation_config(
            llm.input_processor.generation_config_fields, llm.renderer.get_eos_token_id()
        )
        request = EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=self.prompt_token_ids,
            mm_features=None,
            sampling_params=self._params,
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )
        self._text = IncrementalDetokenizer.from_new_request(llm.renderer.tokenizer, request)

    def ending_at(self, token_id: int) -> ResumedEnding | None:
        """Whether the engine would have stopped at this token (vLLM's `check_stop`)."""
        if token_id == self._params.eos_token_id:
            return ResumedEnding("stop")
        if token_id in (self._params.stop_token_ids or ()):
            return ResumedEnding("stop", token_id)
        if self._text.num_output_tokens() + 1 >= self._max_tokens:
            return ResumedEnding("length")
        return None

    def add(
        self, token_ids: Sequence[int], ending: ResumedEnding | None, source: Any = None
    ) -> RequestOutput:
        """Add new ids; gives the output that the serving layer would have received from the engine."""
        before = self._text.num_output_tokens()
        is_stop_token = ending is not None and ending.finish_reason == "stop"
        stop_string = self._text.update(list(token_ids), is_stop_token)
        if stop_string is not None:
            ending = ResumedEnding("stop", stop_string)
        self.is_over = ending is not None
        completion = CompletionOutput(
            index=0,
            text=self._text.get_next_output_text(self.is_over, True),
            token_ids=self._text.output_token_ids[before:],
            cumulative_logprob=None,
            logprobs=None,
            finish_reason=ending.finish_reason if ending else None,
            stop_reason=ending.stop_reason if ending else None,
        )
        return RequestOutput(
            request_id=self._request_id,
            prompt=self._prompt_text,
            prompt_token_ids=self.prompt_token_ids,
            prompt_logprobs=None,
            outputs=[completion],
            finished=self.is_over,
            metrics=getattr(source, "metrics", None),
            # Not `num_cached_tokens`: the engine was given prompt and answer as one prompt, and found mostly its own.
        )


def _ids_of(prompt: Any) -> Sequence[int]:
    """The ids of a rendered prompt; none of one that is text yet."""
    ids = prompt.get("prompt_token_ids") if isinstance(prompt, Mapping) else None
    return ids or ()


def _after_turns(
    llm: Any, prompt: Any, params: SamplingParams, turns: Sequence[TurnIds]
) -> tuple[Any, SamplingParams]:
    """The prompt with the ids of the turns so far, where it can have them; else as the template rendered it. An answer
    that may fill the context gets what is left of it.
    """
    rendered, ends = _ids_of(prompt), _end_tokens(llm, params)
    is_ended = all(turn.answer and turn.answer[-1] in ends for turn in turns)
    if not rendered or not is_ended or prompt.get("type") != "token":
        return prompt, params
    ids, max_model_len = appended_ids(rendered, turns), llm.model_config.max_model_len
    if ids is None:
        return prompt, params
    most, room = params.max_tokens or 1, max_model_len - len(ids)
    if most > room:
        if room < 1 or most != max_model_len - len(rendered):
            return prompt, params
        params = params.clone()
        params.max_tokens = room
    kept = {n: value for n, value in prompt.items() if n not in ("prompt", "prompt_token_offsets")}
    return {**kept, "prompt_token_ids": ids}, params


def _end_tokens(llm: Any, params: SamplingParams) -> set[int | None]:
    """The tokens that end an answer by themselves."""
    own = params.clone()
    eos = llm.renderer.get_eos_token_id()
    own.update_from_generation_config(llm.input_processor.generation_config_fields, eos)
    return {eos, *(own.stop_token_ids or ())}


def _recorded(buffer: ResumeBuffer, output: Any) -> Any:
    for completion in output.outputs:
        if completion.token_ids:
            buffer.record(tuple(completion.token_ids))
    return output


def _remaining(params: SamplingParams, made: int) -> SamplingParams:
    """The request for the rest of the answer, after `made` tokens.

    Text and stop strings are handled here (they may cross the seam). The seed advances with the tokens, so that the
    noise of the first tokens is not drawn twice; the same seam gives the same rest.
    """
    rest = params.clone()
    rest.max_tokens = (params.max_tokens or made + 1) - made
    rest.min_tokens = max(0, params.min_tokens - made)
    rest.detokenize = False
    rest.stop = []
    rest.output_text_buffer_length = 0
    if params.seed is not None:
        rest.seed = (params.seed + made) % (1 << 63)
    return rest


def _ending_of(completion: Any) -> ResumedEnding | None:
    if completion.finish_reason is None:
        return None
    return ResumedEnding(completion.finish_reason, completion.stop_reason)
