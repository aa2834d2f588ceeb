"""Direct calls, whose caller waits: OpenAI routes and KServe's predict. No job, no store, no resumption.

Called by `predictor.serving.openai_routes` and `predictor.serving.model`. They share the engine's batch with queued
jobs, through the same admission. When the caller disconnects, the generator is closed, which aborts the request.
"""

import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import structlog

from eventing.errors import TorporError
from eventing.job.call.reasoning import choice_with_both_names
from predictor.delivery.admission import Admission, AdmissionPhase, sequences
from predictor.engine.engine import Engine, EngineRequest
from predictor.errors import EngineRequestError, where
from predictor.generation.assembly import Assembler

_log = structlog.get_logger()

Chunk = Mapping[str, Any]


class DirectCalls:
    """Runs calls directly on the engine."""

    def __init__(self, engine: Engine, admission: Admission) -> None:
        self._engine = engine
        self._admission = admission

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def is_ready(self) -> bool:
        """True while calls are accepted."""
        return self._admission.phase is AdmissionPhase.SERVING

    async def answer(self, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The whole body. Raises what `stream` raises."""
        assembler = Assembler()
        async with aclosing(self._run(url, body, wants_chunks=False)) as chunks:
            async for chunk in chunks:
                assembler.add(chunk)
        return assembler.body()

    async def stream(self, url: str, body: Mapping[str, Any]) -> AsyncGenerator[Chunk, None]:
        """The chunks, the one with `usage` last. Raises `BadRequest`, `Unavailable` when no slot is free or the
        engine has died, `EngineRequestError`.
        """
        async with aclosing(self._run(url, body, wants_chunks=True)) as chunks:
            async for chunk in chunks:
                choices = [choice_with_both_names(each) for each in chunk.get("choices", ())]
                yield {**chunk, "choices": choices} if choices else chunk

    async def _run(
        self, url: str, body: Mapping[str, Any], *, wants_chunks: bool
    ) -> AsyncGenerator[Chunk, None]:
        id_ = f"direct-{secrets.token_hex(8)}"
        request = EngineRequest(id_, url, body, wants_chunks=wants_chunks)
        with self._admission.slot(sequences(body)):
            try:
                async with aclosing(self._engine.run(request, ())) as steps:
                    async for step in steps:
                        if step.chunk is not None:
                            yield step.chunk
            except TorporError:
                raise
            except Exception as error:
                # The last handler of this call: an exception that passes it would be logged with its message.
                _log.error("call broke", action="call", **where(error))
                raise EngineRequestError("the predictor failed") from None
