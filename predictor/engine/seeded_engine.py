"""The test engine: tokens from prompt and seed, at a set speed, with faults on request. No model.

Used for tests of everything but the model (`--engine seeded`). Answers in the form of vLLM's stream chunks and
implements `predictor.engine.engine.Engine` completely, resumption included. Starts in some tens of milliseconds:
must not import vLLM, torch or KServe.

The body's `seeded` object controls one request (`predictor.engine.seeded_tokens.SeededParams`).
"""

import asyncio
import os
import signal
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from predictor.engine import seeded_tokens
from predictor.engine.engine import (
    CACHE_SALT,
    ColdStartPhase,
    DecodeStep,
    EngineRequest,
    PhaseReporter,
    cache_salt,
)
from predictor.engine.seeded_tokens import BLOCK_TOKENS, EMBEDDING_URL, EOS, SeededRequest
from predictor.engine.seeded_turns import Piece
from predictor.errors import BadRequest, EngineDeadError, EngineRequestError, EngineStartError

_YIELD_EVERY: Final = 32
"""Tokens after which an engine without a set speed yields to other tasks."""


@dataclass(frozen=True, slots=True)
class SeededSettings:
    """The test engine's behaviour. Speeds are per request; 0 means as fast as the machine can."""

    model_names: tuple[str, ...] = ("seeded",)
    tokens_per_s: float = 50.0
    prefill_tokens_per_s: float = 2000.0
    start_up_s: float = 0.0
    max_concurrency: int = 16
    max_model_len: int = 4096


class SeededEngine:
    """An `Engine` whose answers are a function of prompt and seed."""

    def __init__(self, settings: SeededSettings | None = None) -> None:
        self._settings = settings or SeededSettings()
        self._slots = asyncio.Semaphore(self._settings.max_concurrency)
        self._dead = asyncio.Event()
        self._is_started = False
        self._running: set[str] = set()
        self._cached = PrefixCache()

    @property
    def model_names(self) -> Sequence[str]:
        return self._settings.model_names

    @property
    def device(self) -> str:
        return "no model (seeded)"

    @property
    def max_concurrency(self) -> int:
        return self._settings.max_concurrency

    @property
    def max_model_len(self) -> int:
        return self._settings.max_model_len

    @property
    def version(self) -> str:
        return "seeded"

    @property
    def running(self) -> frozenset[str]:
        """Ids of the requests that hold a slot, for tests."""
        return frozenset(self._running)

    async def start(self, report: PhaseReporter) -> None:
        """Pass through the phases of a real start in `start_up_s` seconds."""
        if self._dead.is_set():
            raise EngineStartError("a stopped or dead test engine cannot be started again")
        for phase in (ColdStartPhase.WEIGHTS, ColdStartPhase.COMPILE, ColdStartPhase.WARM_UP):
            report(phase)
            await asyncio.sleep(self._settings.start_up_s / 3)
        self._is_started = True
        report(ColdStartPhase.READY)

    async def stop(self) -> None:
        """Fail what still runs."""
        self._dead.set()

    def is_healthy(self) -> bool:
        return self._is_started and not self._dead.is_set()

    def validate(self, request: EngineRequest) -> None:
        parsed = seeded_tokens.parse(request)
        if parsed.model is not None and parsed.model not in self.model_names:
            names = ", ".join(self.model_names)
            raise BadRequest(f"no model {parsed.model!r} here; there is: {names}", field="model")
        if request.url != EMBEDDING_URL:
            seeded_tokens.output_limit(parsed, self._settings.max_model_len)

    def can_resume(self, request: EngineRequest) -> bool:
        parsed = seeded_tokens.parse(request)
        return parsed.n == 1 and parsed.knobs.resumable and request.url != EMBEDDING_URL

    async def run(
        self, request: EngineRequest, prior_token_ids: Sequence[int]
    ) -> AsyncGenerator[DecodeStep, None]:
        """See `Engine.run`. Waits for a slot when `max_concurrency` are taken."""
        self.validate(request)
        if not self.is_healthy():
            raise EngineDeadError("the test engine is not running")
        parsed = seeded_tokens.parse(request)
        async with self._slots:
            self._running.add(request.request_id)
            try:
                if request.url == EMBEDDING_URL:
                    yield DecodeStep((), _embedding_body(parsed, self.model_names[0]))
                    return
                chunks = _Chunks(request, parsed, parsed.model or self.model_names[0])
                async for step in self._generate(chunks, parsed, prior_token_ids):
                    yield step
            finally:
                self._running.discard(request.request_id)

    async def _generate(
        self, chunks: "_Chunks", request: SeededRequest, prior: Sequence[int]
    ) -> AsyncIterator[DecodeStep]:
        limit = seeded_tokens.output_limit(request, self._settings.max_model_len)
        cached = self._cached.take(seeded_tokens.block_hashes(request, chunks.salt))
        chunks.cached_tokens = 0 if prior else cached
        read = request.prompt_tokens + len(prior) - cached
        await self._pause(_seconds(read, self._prefill_speed))
        for choice in range(request.n if request.is_chat else 0):
            yield DecodeStep((), chunks.role(choice))
        made = 0
        for choice in range(request.n):
            is_finished = False
            for position, token_id in enumerate(prior):
                is_finished = _is_last(position, token_id, limit)
                yield DecodeStep((), chunks.token(choice, position, token_id, is_finished))
            made += len(prior)
            source = seeded_tokens.tokens(request, choice, prior)
            position = len(prior)
            due = asyncio.get_running_loop().time()
            while not is_finished:
                due += _seconds(1, self._speed(request))
                await self._pause_until(due, position)
                await self._inject_faults(request, position)
                token_id = next(source)
                is_finished = _is_last(position, token_id, limit)
                yield DecodeStep((token_id,), chunks.token(choice, position, token_id, is_finished))
                position += 1
                made += 1
        yield DecodeStep((), chunks.usage(made))

    @property
    def _prefill_speed(self) -> float:
        return self._settings.prefill_tokens_per_s

    def _speed(self, request: SeededRequest) -> float:
        asked = request.knobs.tokens_per_s
        return self._settings.tokens_per_s if asked is None else asked

    async def _pause_until(self, due: float, position: int) -> None:
        """Keep the pace by the clock, so that late wake-ups do not add up."""
        wait_s = due - asyncio.get_running_loop().time()
        if wait_s > 0 or position % _YIELD_EVERY == 0:
            await self._pause(wait_s)
        elif self._dead.is_set():
            raise EngineDeadError("the test engine died")

    async def _pause(self, seconds: float) -> None:
        """Sleep, but wake at once when the engine dies, as vLLM's requests do."""
        if seconds <= 0:
            await asyncio.sleep(0)
        else:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._dead.wait(), seconds)
        if self._dead.is_set():
            raise EngineDeadError("the test engine died")

    async def _inject_faults(self, request: SeededRequest, position: int) -> None:
        """The fault that the request's `seeded` object asks for at this token."""
        knobs = request.knobs
        if position == knobs.stall_at:
            await self._dead.wait()
        if position == knobs.fail_at:
            raise EngineRequestError(f"the test engine fails as requested at token {position}")
        if position == knobs.process_dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if position == knobs.engine_dies_at:
            self._dead.set()
        if self._dead.is_set():
            raise EngineDeadError("the test engine died")


class PrefixCache:
    """The blocks of prompts that an engine has read, newest last."""

    def __init__(self, most: int = 16_384) -> None:
        self._most = most
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def take(self, hashes: Sequence[bytes]) -> int:
        """The tokens of a prompt that are here; all of its blocks are from now on."""
        found = 0
        for block in hashes:
            if block not in self._blocks:
                break
            found += 1
        for block in reversed(hashes):  # the first one last: without it the others match nothing
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)
        return found * BLOCK_TOKENS


class _Chunks:
    """Stream chunks of one answer, in vLLM's form."""

    def __init__(self, call: EngineRequest, request: SeededRequest, model: str) -> None:
        self._request = request
        self._counts = call.counts_throughout
        self.salt: Final = cache_salt(call.tenant, call.body.get(CACHE_SALT))
        self.cached_tokens = 0
        self._frame = {
            "id": f"{'chatcmpl' if request.is_chat else 'cmpl'}-{call.request_id}",
            "object": "chat.completion.chunk" if request.is_chat else "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def role(self, choice: int) -> Mapping[str, Any]:
        return self._chunk(choice, {"delta": {"role": "assistant", "content": ""}}, None)

    def token(self, choice: int, position: int, token_id: int, is_last: bool) -> Mapping[str, Any]:
        """The chunk of a token; as at vLLM, its usage is that of its choice."""
        chunk = self._token(choice, position, token_id, is_last)
        return chunk | {"usage": self._usage(position + 1)} if self._counts else chunk

    def _token(self, choice: int, position: int, token_id: int, is_last: bool) -> dict[str, Any]:
        thought = self._request.knobs.reasoning_tokens
        reason = None if not is_last else "stop" if token_id == EOS else "length"
        if self._request.script and position >= thought:
            return self._scripted(choice, position - thought, reason)
        text = seeded_tokens.text_of(token_id, is_first=position in (0, thought))
        if not self._request.is_chat:
            return self._chunk(choice, {"text": text}, reason)
        if self._request.tool and position >= thought:
            call = self._call(choice, token_id, is_first=position == thought)
            reason = "tool_calls" if reason == "stop" else reason
            return self._chunk(choice, {"delta": {"tool_calls": [call]}}, reason)
        field = "reasoning" if position < thought else "content"
        return self._chunk(choice, {"delta": {field: text}}, reason)

    def _scripted(self, choice: int, place: int, reason: str | None) -> dict[str, Any]:
        """The chunk of a token of a scripted turn; the last one shows nothing."""
        script = self._request.script
        piece = script[place] if place < len(script) else Piece("")
        if reason == "stop" and script[-1].call >= 0:
            reason = "tool_calls"
        if piece.call < 0:
            return self._chunk(choice, {"delta": {"content": piece.text}}, reason)
        call: dict[str, Any] = {"index": piece.call, "function": {"arguments": piece.text}}
        if piece.name:
            name = f"call-{choice}-{piece.call}-{self._frame['id']}"
            call |= {"id": name, "type": "function"}
            call["function"] = {"name": piece.name, "arguments": piece.text}
        return self._chunk(choice, {"delta": {"tool_calls": [call]}}, reason)

    def _call(self, choice: int, token_id: int, *, is_first: bool) -> Mapping[str, Any]:
        arguments = seeded_tokens.arguments_of(token_id, is_first=is_first)
        if not is_first:
            return {"index": 0, "function": {"arguments": arguments}}
        function = {"name": self._request.tool, "arguments": arguments}
        name = f"call-{choice}-{self._frame['id']}"
        return {"index": 0, "id": name, "type": "function", "function": function}

    def usage(self, completion_tokens: int) -> Mapping[str, Any]:
        return {**self._frame, "choices": [], "usage": self._usage(completion_tokens)}

    def _usage(self, completion_tokens: int) -> Mapping[str, Any]:
        prompt_tokens = self._request.prompt_tokens
        usage: dict[str, Any] = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }
        if self.cached_tokens:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        return usage

    def _chunk(self, choice: int, shown: Mapping[str, Any], reason: str | None) -> dict[str, Any]:
        entry = {"index": choice, **shown, "logprobs": None, "finish_reason": reason}
        return {**self._frame, "choices": [entry]}


def _is_last(position: int, token_id: int, limit: int) -> bool:
    return token_id == EOS or position + 1 >= limit


def _seconds(count: int, per_s: float) -> float:
    return count / per_s if per_s > 0 else 0.0


def _embedding_body(request: SeededRequest, model: str) -> Mapping[str, Any]:
    data = [
        {"object": "embedding", "index": i, "embedding": seeded_tokens.embedding(text)}
        for i, text in enumerate(request.prompt)
    ]
    usage = {"prompt_tokens": request.prompt_tokens, "total_tokens": request.prompt_tokens}
    return {"object": "list", "model": model, "data": data, "usage": usage}
