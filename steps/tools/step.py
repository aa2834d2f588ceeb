"""The step `tools`: an answer that asks for tools becomes a turn of its job.

It dials nothing: what it decides is stored by one script together with the events of the calls. An answer without calls
goes on. Parts of stored results are read here, since that changes nothing.
"""

from dataclasses import replace
from typing import Any

from eventing.clock import Clock
from eventing.errors import BadRequest
from eventing.job.job import Job, JobError
from eventing.job.tools.call import CallState, ToolCall, Turn
from eventing.job.tools.server import BUILT_IN, ToolConfig
from eventing.telemetry.cost import Prices
from eventing.telemetry.metric.series import labelled
from steps.handler import (
    CommitTurn,
    Continue,
    QueueCalls,
    Refuse,
    StepCall,
    StepOutcome,
    wrong_setting,
)
from steps.tools import metrics
from steps.tools.decision import ApprovalImpossible, decide
from steps.tools.results import ToolResults
from steps.tools.settings import limits_of, recorded_settings


class Tools:
    """The handler of the step `tools`."""

    def __init__(
        self, config: ToolConfig, results: ToolResults, clock: Clock, prices: Prices
    ) -> None:
        self._config = config
        self._prices = prices
        self._results = results
        self._clock = clock

    async def __call__(self, call: StepCall) -> StepOutcome:
        job = call.job
        if job.turns and (job.candidate is None or job.tool_phase is not None):
            return QueueCalls()  # a turn that will end the job keeps its answer meanwhile
        try:
            settings = recorded_settings(call.settings)
        except BadRequest as error:
            return wrong_setting(error)
        settings = replace(settings, limits=limits_of(job, self._config))
        configured = self._config.serving(job.tenant)
        try:
            decided = decide(job, settings, configured, self._clock.wall_ms(), self._cost(job))
        except ApprovalImpossible as error:
            return Refuse(error=JobError(code="approval_required", message=str(error)))
        if decided.turn is None:
            return Continue(result=decided.result)
        turn = await self._with_reads(job, decided.turn)
        labelled(metrics.TURNS, turn.stopped_by).inc()
        return CommitTurn(turn=turn, detail=_detail(turn))

    def _cost(self, job: Job) -> float:
        """What the job's answers cost so far."""
        return sum(self._prices.of(job.usage, job.to_run.model, job.gpu_ms / 1000).values())

    async def _with_reads(self, job: Job, turn: Turn) -> Turn:
        """The turn with the results of calls that read stored ones."""
        calls = [
            await self._read(job, call)
            if call.server == BUILT_IN and call.state is CallState.PENDING
            else call
            for call in turn.calls
        ]
        return replace(turn, calls=tuple(calls))

    async def _read(self, job: Job, call: ToolCall) -> ToolCall:
        text, is_error = await self._results.part(job, call.arguments)
        return replace(call, state=CallState.RETURNED, output=text, is_error=int(is_error))


def _detail(turn: Turn) -> dict[str, Any]:
    said: dict[str, Any] = {"turn": turn.number, "calls": len(turn.calls)}
    return said | ({"stopped_by": turn.stopped_by} if turn.stopped_by else {})
