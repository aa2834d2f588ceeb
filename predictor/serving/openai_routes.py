"""The predictor's OpenAI-compatible direct routes: chat, completions, embeddings, models; and vLLM's `/version`.

Called by `predictor.server`, under `/openai/v1` (KServe's prefix) and `/v1`. The engine validates bodies; only
`stream` is parsed here. Must not know jobs or events.
"""

import math
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, Final

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from eventing.errors import BadRequest, TorporError, Unavailable
from eventing.job.job import RUNNABLE_URLS, URL_BY_FIELD
from predictor.serving.direct_call import Chunk, DirectCalls

_PREFIXES: Final = ("/openai/v1", "/v1")


def add_openai_routes(app: Starlette, calls: DirectCalls) -> None:
    """Added before KServe's own, whose `GET /v1/models` is answered here for both."""
    routes = OpenAiRoutes(calls)
    for prefix in _PREFIXES:
        for url in RUNNABLE_URLS:
            app.add_route(prefix + url.removeprefix("/v1"), routes.call(url), methods=["POST"])
        app.add_route(f"{prefix}/models", routes.list_models, methods=["GET"])
        app.add_route(f"{prefix}/models/{{name:path}}", routes.get_model, methods=["GET"])
    app.add_route("/version", routes.version, methods=["GET"])
    app.add_route("/invocations", routes.invoke, methods=["POST"])


class OpenAiRoutes:
    """Handlers over one engine."""

    def __init__(self, calls: DirectCalls) -> None:
        self._calls = calls
        self._started_s = int(time.time())

    def call(self, url: str) -> Any:
        """The handler of one endpoint."""

        async def handle(request: Request) -> Response:
            try:
                return await self._answer(url, _parse(await request.body()))
            except TorporError as error:
                return _failure(error)

        return handle

    async def invoke(self, request: Request) -> Response:
        """SageMaker's one route, as vLLM has it: what the body holds says which endpoint is meant."""
        try:
            body = _parse(await request.body())
            url = next((url for field, url in URL_BY_FIELD.items() if field in body), None)
            if url is None:
                raise BadRequest(f"the body must hold one of {', '.join(URL_BY_FIELD)}")
            return await self._answer(url, body)
        except TorporError as error:
            return _failure(error)

    async def _answer(self, url: str, body: Mapping[str, Any]) -> Response:
        if body.get("stream"):
            return await self._stream(url, body)
        return _json(await self._calls.answer(url, body))

    async def list_models(self, request: Request) -> Response:
        """OpenAI's list; KServe's v1 clients read its `models`."""
        names = self._calls.engine.model_names
        cards = [self._card(name) for name in names]
        return _json({"object": "list", "data": cards, "models": list(names)})

    async def get_model(self, request: Request) -> Response:
        """One model; with `name` and `ready` it is KServe's v1 readiness as well."""
        name = request.path_params["name"]
        if name not in self._calls.engine.model_names:
            return _failure(_unknown_model(name))
        is_ready = self._calls.is_ready
        card = {**self._card(name), "name": name, "ready": is_ready}
        return _json(card, HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE)

    async def version(self, request: Request) -> Response:
        """As vLLM's: the engine's version."""
        return _json({"version": self._calls.engine.version})

    def _card(self, name: str) -> Mapping[str, Any]:
        """As vLLM's. `root` is the name of the loaded model, `parent` that of a LoRA adapter's base."""
        base = self._calls.engine.model_names[0]
        return {
            "id": name,
            "object": "model",
            "created": self._started_s,
            "owned_by": "torpor",
            "root": name,
            "parent": None if name == base else base,
            "max_model_len": self._calls.engine.max_model_len or None,
        }

    async def _stream(self, url: str, body: Mapping[str, Any]) -> Response:
        """Starts the engine's stream before the response, so that a refusal still has its own status."""
        chunks = self._calls.stream(url, body)
        try:
            first = await anext(chunks)
        except BaseException:
            await chunks.aclose()
            raise
        wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        lines = _server_sent(first, chunks, wants_usage=wants_usage)
        return StreamingResponse(lines, media_type="text/event-stream")


async def _server_sent(
    first: Chunk, rest: AsyncGenerator[Chunk, None], *, wants_usage: bool
) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        try:
            yield _line(first)
            async for chunk in rest:
                if chunk.get("choices") or wants_usage:
                    yield _line(chunk)
        except TorporError as error:
            yield _line({"error": _problem(error)})
        yield b"data: [DONE]\n\n"


def _parse(raw: bytes) -> Mapping[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error.msg} at {error.pos}") from error
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    if not isinstance(body.get("stream_options") or {}, dict):
        raise BadRequest("stream_options must be an object", "stream_options")
    if body.get("stream_options") and not body.get("stream"):
        raise BadRequest("stream_options is only allowed with stream: true", "stream_options")
    return body


def _json(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, media_type="application/json")


def _failure(error: TorporError) -> Response:
    headers = {}
    if isinstance(error, Unavailable):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    return _json({"error": _problem(error)}, _status(error), headers)


def _status(error: TorporError) -> int:
    """OpenAI has no 422, and answers an unknown model with 404."""
    if not isinstance(error, BadRequest):
        return error.status
    return HTTPStatus.NOT_FOUND if error.field == "model" else HTTPStatus.BAD_REQUEST


def _problem(error: TorporError) -> Mapping[str, Any]:
    is_callers = isinstance(error, BadRequest)
    return {
        "message": error.message,
        "type": "invalid_request_error" if is_callers else "server_error",
        "param": (error.field or None) if isinstance(error, BadRequest) else None,
        "code": error.code,
    }


def _unknown_model(name: str) -> BadRequest:
    return BadRequest(f"no model {name!r:.100} here", "model")


def _line(data: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"
