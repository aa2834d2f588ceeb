"""Calls whose caller waits: OpenAI routes and KServe's predict. No job, no store, no resumption.

Called by `predictor.serving.openai_routes` and `predictor.serving.model`. They share the engine's batch with the
queued jobs, by the same admission. A caller that goes away closes the generator, which aborts.
"""

import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import structlog

from eventing.errors import TorporError
from eventing.job.reasoning import choice_with_both_names
from predictor.delivery.admission import Admission, AdmissionPhase, sequences
from predictor.engine.engine import Engine, EngineRequest
from predictor.errors import EngineRequestError, where
from predictor.generation.assembly import Assembler

_log = structlog.get_logger()

Chunk = Mapping[str, Any]


class DirectCalls:
    """Runs calls straight on the engine."""

    def __init__(self, engine: Engine, admission: Admission) -> None:
        self._engine = engine
        self._admission = admission

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def is_ready(self) -> bool:
        """True while calls are taken."""
        return self._admission.phase is AdmissionPhase.SERVING

    async def answer(self, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The whole body. Raises what `stream` raises."""
        assembler = Assembler()
        async with aclosing(self._run(url, body, wants_chunks=False)) as chunks:
            async for chunk in chunks:
                assembler.add(chunk)
        return assembler.body()

    async def stream(self, url: str, body: Mapping[str, Any]) -> AsyncGenerator[Chunk, None]:
        """The chunks, the one with `usage` last. Raises `BadRequest`, `Unavailable` when there is
        no room or the engine is gone, `EngineRequestError`.
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
                # The outermost handler of this call; what goes further up is logged with its words.
                _log.error("call broke", action="call", **where(error))
                raise EngineRequestError("the predictor failed") from None
