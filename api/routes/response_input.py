"""Input of a response: token count and compaction.

Called by `api.wiring`. Must not know how a response is answered.
"""

from typing import Any, Final, Literal

from starlette.responses import Response
from typing_extensions import TypedDict

from api.auth.principal import Scope
from api.job.compaction import CompactionView, compaction_line, compaction_view
from api.job.conversation import field_of_call, history_of, read_ask, with_stored_items
from api.job.response.request import input_items
from api.job.submission import submit
from api.job.submit_options import SUBMIT_HEADERS, parse_submit_options
from api.openapi.operation import Body
from api.routes.held import ended_job, job_of_repeat
from api.routes.jobs import json_response, naming
from api.routes.openai import GENERATING_REFUSES
from api.routes.responses import RESPONSE_REQUEST, ResponseDeps
from api.routes.route import Call, Routes
from api.view.outcome import failure_of
from eventing.errors import BadRequest
from eventing.job.call.rule import NAME, TEXT, check_fields, object_schema
from eventing.job.job import Job, Lane
from eventing.store.conversation.messages import Message, messages_of

routes: Routes[ResponseDeps] = Routes("openai")

_COMPACT_RULES: Final = {"instructions": TEXT, "prompt_cache_key": TEXT}
_COMPACT: Final = Body(
    "CompactionRequest",
    object_schema(
        {"model": NAME.schema},
        {**_COMPACT_RULES, "previous_response_id": TEXT},
        {"input": {"type": ["string", "array"]}},
    ),
)


class InputTokens(TypedDict):
    """The count."""

    object: Literal["response.input_tokens"]
    input_tokens: int


@routes.operation(
    "POST",
    "/v1/responses/compact",
    Scope.JOBS_WRITE,
    parameters=SUBMIT_HEADERS,
    body=_COMPACT,
    answers=CompactionView,
    refuses=GENERATING_REFUSES,
)
async def compact_conversation(call: Call[ResponseDeps]) -> Response:
    """Make a conversation shorter.

    The model summarizes it. The `output` of the answer is the input that goes on from there: what
    users said, and an item that holds the summary.
    """
    body = await call.read_object()
    check_fields(body, _COMPACT_RULES)
    held = call.deps.held
    job = await job_of_repeat(held, call, body) or await _summarize(call, body)
    with naming(job):
        ended = await ended_job(held, call, body, job)
        if failure := failure_of(ended):
            raise failure
    return json_response(compaction_view(ended), headers={"torpor-job-id": job.id})


@routes.operation(
    "POST",
    "/v1/responses/input_tokens",
    Scope.JOBS_WRITE,
    body=RESPONSE_REQUEST,
    answers=InputTokens,
    refuses=GENERATING_REFUSES,
)
async def count_input_tokens(call: Call[ResponseDeps]) -> Response:
    """Count the tokens of a response's input.

    With the model's own chat template and tokenizer, earlier responses and tools included; no predictor is woken.
    """
    body = await call.read_object()
    ask = await read_ask(call.deps.submission, call.deps.held.store, call.principal, body)
    try:
        count = await call.deps.submission.catalog.count_prompt(ask.body)
    except BadRequest as error:
        error.field = field_of_call(error.field)
        raise
    return json_response({"object": "response.input_tokens", "input_tokens": count})


async def _summarize(call: Call[ResponseDeps], body: dict[str, Any]) -> Job:
    """The job that summarizes what `body` says. Its refusals name the fields of the call."""
    submission = call.deps.submission
    card = submission.catalog.card(str(body.get("model")))
    messages = await _said(call, body)
    line = compaction_line(body.get("model"), messages, card.context_tokens if card else 1)
    options = parse_submit_options({}, call.request.headers, lane=Lane.INTERACTIVE)
    try:
        job, _ = await submit(submission, call.principal, line, options)
    except BadRequest as error:
        error.field = field_of_call(error.field)
        raise
    return job


async def _said(call: Call[ResponseDeps], body: dict[str, Any]) -> list[Message]:
    store, previous = call.deps.held.store, body.get("previous_response_id")
    history = await history_of(store, call.principal, previous)
    given = await with_stored_items(store, call.principal, body.get("input"))
    items = input_items(given) if given is not None or previous is None else []
    instructions = body.get("instructions")
    system = [{"role": "system", "content": instructions}] if instructions else []
    return [*system, *history, *messages_of(items)]
