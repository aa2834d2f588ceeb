"""OpenAI's chat completions, completions, embeddings and moderations, through the queue.

Called by `api.wiring`. A call is a job, so it also works while the model is at zero. A client that disconnects
cancels its job, unless an Idempotency-Key lets it return.
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from api.auth.principal import Scope
from api.http.errors import ModelNotFound
from api.http.metadata import METADATA
from api.http.parameter import Parameter
from api.http.problem import openai_error
from api.http.protocol import ResponseWriter, writer_of
from api.http.sse import KEEP_ALIVE, data_frame
from api.job.catalog import Catalog
from api.job.live import LiveDeps, job_now, moments, write_directly
from api.job.stored_completions import MARK, StoredCompletions
from api.job.stream_position import StreamBroken
from api.job.submission import SubmitDeps, submit
from api.job.submit_options import SUBMIT_HEADERS, parse_submit_options
from api.limit import service_tier
from api.openapi.examples import CHAT_CHUNK, TEXT_CHUNK
from api.openapi.operation import Body, Text
from api.routes.held import HeldDeps, cancel_when_left, ended_job, job_of_repeat, stream_of
from api.routes.jobs import accepted, json_response, naming
from api.routes.route import Call, Routes
from api.view.cache import job_headers
from api.view.chunk import Chunker, wants_usage_throughout
from api.view.job import AcceptedJobView
from api.view.openai import ChatCompletion, Completion, EmbeddingList, Moderation
from api.view.outcome import answer_of, failure_of
from eventing.errors import InvalidJob, TorporError
from eventing.job.cache.cache import directives
from eventing.job.call.fields import CHAT_BATCH_URL, request_schema
from eventing.job.call.moderation import MODERATION_URL
from eventing.job.call.rule import FLAG, NAME, nullable
from eventing.job.capability import Capability
from eventing.job.job import URL_BY_FIELD, Job, Lane
from eventing.job.plan import ROUTE_STEP, STEPS_AFTER
from eventing.job.stream import StreamEntry
from eventing.job.tools.asked import MCP
from eventing.job.tools.request import OnApproval


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIDeps:
    """The dependencies of OpenAI's calls."""

    submission: SubmitDeps
    held: HeldDeps
    catalog: Catalog
    completions: StoredCompletions


routes: Routes[OpenAIDeps] = Routes("openai")

DONE: Final = data_frame(b"[DONE]")

GENERATING_HEADERS: Final = (
    Parameter("Prefer", "`respond-async`: 202 and the job at once", "header"),
    *SUBMIT_HEADERS,
)
GENERATING_REFUSES: Final = (404, 500, 504)
_OPTIONS: Final = {
    "type": "object",
    "properties": {"include_usage": FLAG.schema, "continuous_usage_stats": FLAG.schema},
}
_BESIDE: Final = {
    "stream": nullable(FLAG.schema),
    "stream_options": nullable(_OPTIONS),
    "metadata": METADATA,
    "store": nullable(FLAG.schema),
    service_tier.FIELD: nullable(service_tier.RULE.schema),
}
"""What a call has beside the fields of its job."""


def _body(name: str, url: str, manual: str) -> Body:
    schema = request_schema(url)
    more = (
        f"Further fields are the engine's; see https://developers.openai.com/api/reference/{manual}"
    )
    return Body(name, schema | {"description": more, "properties": schema["properties"] | _BESIDE})


_INVOCATION: Final = {
    "type": "object",
    "required": ["model"],
    "description": "what the call that it means takes, with one of these fields",
    "properties": {"model": NAME.schema, **{field: {} for field in URL_BY_FIELD}},
}


def _stream(chunk: str) -> Text:
    """An answer with `stream: true`."""
    return Text("", "text/event-stream", f"data: {chunk}\n\ndata: [DONE]\n\n")


@routes.operation(
    "POST",
    "/v1/chat/completions",
    Scope.JOBS_WRITE,
    parameters=GENERATING_HEADERS,
    body=_body("ChatCompletionRequest", "/v1/chat/completions", "resources/chat"),
    answers={200: (ChatCompletion, _stream(CHAT_CHUNK)), 202: AcceptedJobView},
    refuses=GENERATING_REFUSES,
)
async def create_chat_completion(call: Call[OpenAIDeps]) -> Response:
    """Create a chat completion.

    As at OpenAI. `stream: true` sends chunks, and keep-alive comments while a predictor starts; `Prefer: respond-async`
    answers 202 and the job at once.
    """
    return await _serve(call, "/v1/chat/completions", await call.read_object())


@routes.operation(
    "POST",
    CHAT_BATCH_URL,
    Scope.JOBS_WRITE,
    parameters=GENERATING_HEADERS,
    body=_body("ChatBatchRequest", CHAT_BATCH_URL, "resources/chat"),
    answers={200: ChatCompletion, 202: AcceptedJobView},
    refuses=GENERATING_REFUSES,
)
async def create_chat_batch(call: Call[OpenAIDeps]) -> Response:
    """Create an answer to each of several conversations.

    As at vLLM: `messages` is a list of conversations, and choice N answers conversation N. One job; it is not streamed,
    takes no tools, and starts over when its predictor is lost.
    """
    body = await call.read_object()
    if _flag(body, "stream"):
        raise InvalidJob("several conversations are not streamed", "body.stream")
    return await _serve(call, CHAT_BATCH_URL, body)


@routes.operation(
    "POST",
    "/invocations",
    Scope.JOBS_WRITE,
    parameters=GENERATING_HEADERS,
    body=Body("Invocation", _INVOCATION),
    answers={200: (ChatCompletion, Completion, EmbeddingList), 202: AcceptedJobView},
    refuses=GENERATING_REFUSES,
)
async def invoke(call: Call[OpenAIDeps]) -> Response:
    """Make the call that the body's fields mean.

    SageMaker's one route, as at vLLM: `messages` is a chat completion, `prompt` a completion, `input` embeddings.
    """
    body = await call.read_object()
    url = next((url for field, url in URL_BY_FIELD.items() if field in body), None)
    if url is None:
        raise InvalidJob(f"the body must hold one of {', '.join(URL_BY_FIELD)}", "body")
    return await _serve(call, url, body)


@routes.operation(
    "POST",
    "/v1/completions",
    Scope.JOBS_WRITE,
    parameters=GENERATING_HEADERS,
    body=_body("CompletionRequest", "/v1/completions", "resources/completions"),
    answers={200: (Completion, _stream(TEXT_CHUNK)), 202: AcceptedJobView},
    refuses=GENERATING_REFUSES,
)
async def create_completion(call: Call[OpenAIDeps]) -> Response:
    """Create a completion.

    As at OpenAI, with the same additions as chat completions.
    """
    return await _serve(call, "/v1/completions", await call.read_object())


@routes.operation(
    "POST",
    "/v1/embeddings",
    Scope.JOBS_WRITE,
    parameters=GENERATING_HEADERS,
    body=_body("EmbeddingRequest", "/v1/embeddings", "resources/embeddings"),
    answers={200: EmbeddingList, 202: AcceptedJobView},
    refuses=GENERATING_REFUSES,
)
async def create_embedding(call: Call[OpenAIDeps]) -> Response:
    """Create embeddings.

    As at OpenAI; 400 for a model without embeddings.
    """
    return await _serve(call, "/v1/embeddings", await call.read_object())


@routes.operation(
    "POST",
    MODERATION_URL,
    Scope.JOBS_WRITE,
    parameters=GENERATING_HEADERS,
    body=_body("ModerationRequest", MODERATION_URL, "resources/moderations"),
    answers={200: Moderation, 202: AcceptedJobView},
    refuses=GENERATING_REFUSES,
)
async def create_moderation(call: Call[OpenAIDeps]) -> Response:
    """Judge texts.

    As at OpenAI, by rules or a guard model of the step `moderate`; images are refused. Without `model` the first model
    that moderates is asked.
    """
    body = await call.read_object()
    if body.get("model") is None:
        body["model"] = _moderator(call.deps.catalog)
    return await _serve(call, MODERATION_URL, body)


def _moderator(catalog: Catalog) -> str:
    """The model of a call that names none. Raises `ModelNotFound`."""
    for card in catalog.cards:
        if card.capabilities and Capability.MODERATE in card.capabilities:
            return card.name
    raise ModelNotFound("no model here judges texts", "body.model")


async def _serve(call: Call[OpenAIDeps], url: str, body: dict[str, Any]) -> Response:
    _check_tools(body.get("tools"))
    is_stream = _flag(body, "stream")
    if is_stream:
        await call.hold_stream()
        if body.get("prompt_logprobs"):
            raise InvalidJob("prompt_logprobs cannot be streamed", "body.prompt_logprobs")
    has_usage = _has_usage(body, is_stream=is_stream)
    is_async = prefers_async(call.request)
    line = {"url": url, "body": _of_job(body)}
    lane = Lane.DEFAULT if is_async else Lane.INTERACTIVE
    options = parse_submit_options(
        {"metadata": body.get("metadata")}, call.request.headers, lane=lane
    )
    options = options.in_tier(body.get(service_tier.FIELD), f"body.{service_tier.FIELD}")
    options = replace(
        options,
        cache_control=directives(options.cache_control, body),
        on_approval=OnApproval.FAIL,
    )
    is_stored = _flag(body, "store") and url == "/v1/chat/completions"
    if is_stored:
        options = options.with_metadata({MARK: "1"})
    held = call.deps.held
    job = None if is_async or is_stream else await job_of_repeat(held, call, body)
    if job is None:
        job, is_new = await submit(call.deps.submission, call.principal, line, options)
        if is_stored and is_new:
            await call.deps.completions.add(job)
    if is_async:
        return accepted_async(job)
    if is_stream and url not in _WHOLE:
        frames = _frames(held.live, job, writer_of(call.request.scope), has_usage=has_usage)
        gone = cancel_when_left(held, call, job)
        return stream_of(held, job, frames, gone=gone, error_frame=_error_frame)
    with naming(job):
        ended = await ended_job(held, call, body, job)
        if failure := failure_of(ended):
            raise failure
    return json_response(answer_of(ended), headers=job_headers(ended))


def _of_job(body: Mapping[str, Any]) -> dict[str, Any]:
    """What the job gets of a call."""
    kept = {name: value for name, value in body.items() if name not in _OURS}
    if wants_usage_throughout(body):
        kept["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    return kept


_WHOLE: Final = ("/v1/embeddings", MODERATION_URL)
"""Calls whose answer is one body, whatever `stream` says."""
_MODEL_STEPS: Final = (ROUTE_STEP, *STEPS_AFTER)
"""Steps that may choose another model."""
_OURS: Final = ("stream", "stream_options", "store", service_tier.FIELD)
"""Fields that concern the response, its storage and its lane only, and are not part of the job."""


async def _frames(
    deps: LiveDeps, job: Job, wire: ResponseWriter | None, *, has_usage: bool
) -> AsyncGenerator[bytes, None]:
    """Chunks until the end; a failure half-way is an error in the stream, as at OpenAI."""
    chunker = Chunker(job, has_usage=has_usage)

    def render(entry: StreamEntry) -> bytes:
        return b"".join(map(data_frame, chunker.chunks(entry)))

    on_tokens = write_directly(wire, lambda tokens: render(tokens.parsed()))
    yield KEEP_ALIVE  # the head goes out with it
    try:
        async for moment in moments(deps, job, "", on_tokens):
            if moment.fault is not None:
                raise StreamBroken(moment.fault, job)
            if any(each.step in _MODEL_STEPS for each in moment.entries):
                chunker.name_model(await job_now(deps, job, with_result=False))
            if frames := b"".join(map(render, moment.entries)):
                yield frames
            if moment.job is not None:
                yield _last_frames(chunker, moment.job, has_usage=has_usage)
                return
    except TorporError as error:
        yield _error_frame(error)


def _error_frame(error: TorporError) -> bytes:
    return data_frame(orjson.dumps(openai_error(error)))


def _last_frames(chunker: Chunker, job: Job, *, has_usage: bool) -> bytes:
    """The frames for the end of `job`. Raises the reason when it has no answer."""
    if failure := failure_of(job):
        raise failure
    chunks = [*chunker.unshown(job), *chunker.moderation(job), *chunker.grounding(job)]
    if has_usage:
        chunks.append(chunker.usage(job.usage or _usage_of(job)))
    return b"".join(map(data_frame, chunks)) + DONE


def prefers_async(request: Request) -> bool:
    """True for `Prefer: respond-async`, alone or among others."""
    return "respond-async" in preferences(request)


def preferences(request: Request) -> set[str]:
    """What the call prefers (RFC 7240), in small letters and without parameters."""
    given = ",".join(request.headers.getlist("prefer")).split(",")
    return {each.split(";")[0].replace(" ", "").replace('"', "").lower() for each in given}


def accepted_async(job: Job) -> Response:
    """202, with `Preference-Applied`."""
    answer = accepted(job)
    answer.headers["preference-applied"] = "respond-async"
    return answer


def _check_tools(tools: Any) -> None:
    """Raises `InvalidJob` for a server among the tools: a chat completion has no form for its calls."""
    for place, tool in enumerate(tools if isinstance(tools, list) else ()):
        if isinstance(tool, Mapping) and tool.get("type") == MCP:
            where = f"body.tools[{place}].type"
            raise InvalidJob(
                f"{where} mcp is served by /v1/responses and /v1/jobs; here a model may have tools that its operator "
                "bound to it",
                where,
            )


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidJob(f"{name} must be true or false", f"body.{name}")
    return bool(value)


def _has_usage(body: dict[str, Any], *, is_stream: bool) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise InvalidJob("stream_options must be an object", "body.stream_options")
    if options and not is_stream:
        raise InvalidJob("stream_options is only allowed with stream: true", "body.stream_options")
    return bool(options.get("include_usage"))


def _usage_of(job: Job) -> Any:
    return (job.result or {}).get("usage")
