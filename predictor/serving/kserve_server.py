"""KServe's `ModelServer` with four changes.

Called by `predictor.server`. Signals: uvicorn would stop listening at SIGTERM; a draining predictor goes on
answering 503 and fails its probes until its jobs are settled. Address: KServe always binds 0.0.0.0, and a taken
port is detected before the model is loaded. OpenAI routes: KServe's need another vLLM version, and trying to
register them imports vLLM and torch (9 s) even for the test engine; ours are in `predictor.serving.openai_routes`.
Loading and unloading of models is off: any caller who reached the port could unload the model for all.
"""

import asyncio
import logging
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

import orjson
import uvloop
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRouter
from kserve import ModelServer
from kserve.errors import (
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    ServerNotReady,
    UnsupportedProtocol,
)
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import (
    RESTServer,
    _RefreshingServer,
    metrics_handler,
)
from kserve.protocol.rest.v1_endpoints import register_v1_endpoints
from kserve.protocol.rest.v2_endpoints import register_v2_endpoints
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eventing.cloudevent.event import parse_http
from eventing.process.http_protocol import HttpProtocol
from predictor.serving.grpc_server import GrpcServer
from predictor.serving.model import PredictorModel

_LEFTOVERS_S = 2
"""After the drain no connection is worth waiting for."""
_STRUCTURED: Final = "application/cloudevents+json"
_REFUSALS: Final = (
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    NotImplementedError,
    ServerNotReady,
    UnsupportedProtocol,
)


def _is_trouble(record: logging.LogRecord) -> bool:
    """False for errors that the caller gets anyway. KServe logs an error with its traceback for every probe of a
    loading predictor, which makes a cold start look like a crash.
    """
    return not (record.exc_info and isinstance(record.exc_info[1], _REFUSALS))


class _HttpServer(_RefreshingServer):  # type: ignore[misc]
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """The process handles signals itself, not the HTTP server."""
        yield


class _RestServer(RESTServer):  # type: ignore[misc]
    def __init__(self, listener: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._listener = listener
        self.config.access_log = False
        self.config.http = HttpProtocol
        self.config.proxy_headers = False  # client addresses are not used
        self._server = _HttpServer(self.config)

    def _register_endpoints(self, app: FastAPI) -> None:
        root = APIRouter()
        root.add_api_route("/", self.dataplane.live)
        root.add_api_route("/metrics", metrics_handler, methods=["GET"])
        app.include_router(root)
        app.add_exception_handler(RequestValidationError, _refuse)
        register_v1_endpoints(app, self.dataplane, self.model_repository_extension)
        register_v2_endpoints(app, self.dataplane, self.model_repository_extension)

    def _add_middlewares(self, app: FastAPI) -> None:
        """None of KServe's: its timing middleware logs two lines a request."""

    async def start(self) -> None:
        self.create_application()
        await self._server.serve(sockets=[self._listener])

    def stop(self) -> None:
        self._server.should_exit = True


async def _refuse(request: Request, error: Exception) -> Response:
    """The open inference protocol's error for a body that its types refuse; FastAPI's repeats what was sent."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 (registered for nothing else)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:] if part != "InferenceRequest")
    return JSONResponse({"error": f"{where}: {first['msg']}".removeprefix(": ")}, 400)


class _DataPlane(DataPlane):  # type: ignore[misc]
    """KServe's with four corrections: `/v2/health/ready` reports the real state, an unsupported extension is not
    announced, a content type may have parameters, and a structured CloudEvent need have neither `time` nor plain
    `data` (CloudEvents 1.0, 3.1 and JSON format 3.1).
    """

    async def ready(self) -> bool:
        models = self.model_registry.get_models().values()
        return bool(models) and all([await model.healthy() for model in models])

    def metadata(self) -> dict[str, Any]:
        return {**super().metadata(), "extensions": []}

    def decode(
        self, body: Any, headers: dict[str, str], *args: Any, **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        """`headers` are the request's own, which `encode` uses as well."""
        if "content-type" in headers:
            headers["content-type"] = headers["content-type"].partition(";")[0].strip().lower()
        if headers.get("content-type") == _STRUCTURED and isinstance(body, bytes):
            event = parse_http(headers, body)
            attributes = {"id": event.id, "source": event.source, "type": event.type}
            return _json(event.data), {**attributes, "specversion": "1.0", "time": event.time}
        return super().decode(body, headers, *args, **options)  # type: ignore[no-any-return]


def _json(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the event's data is not JSON: {error.msg}") from error


class _Repository(ModelRepositoryExtension):  # type: ignore[misc]
    """A predictor has the models it was started with, for its whole life."""

    async def load(self, model_name: str) -> None:
        raise NotImplementedError("models are not loaded on request")

    async def unload(self, model_name: str) -> None:
        raise NotImplementedError("models are not unloaded on request")


class PredictorServer(ModelServer):  # type: ignore[misc]
    """Serves until `stop_serving`."""

    def __init__(self, listener: socket.socket, *, grpc_address: str, token: str = "") -> None:
        """`grpc_address` is HOST:PORT; empty leaves gRPC off. `token` is required by gRPC calls."""
        super().__init__(
            http_port=listener.getsockname()[1],
            enable_grpc=False,  # KServe's binds all addresses; ours is used instead
            grace_period=_LEFTOVERS_S,
            enable_latency_logging=False,
        )
        self._listener = listener
        logging.getLogger("kserve").addFilter(_is_trouble)
        self.dataplane = _DataPlane(model_registry=self.registered_models)
        self.model_repository_extension = _Repository(model_registry=self.registered_models)
        self._grpc = (
            GrpcServer(grpc_address, self.dataplane, self.model_repository_extension, token)
            if grpc_address
            else None
        )

    def start(self, models: list[PredictorModel]) -> None:
        """Serve `models`; their `start_engine` runs concurrently with the HTTP server. Blocks."""
        self._register_and_check_atleast_one_model_is_ready(models)
        self._rest_server = _RestServer(
            self._listener,
            "kserve.model_server:app",
            self.dataplane,
            self.model_repository_extension,
            self.http_port,
            grace_period=self.grace_period,
            timeout_keep_alive=self.timeout_keep_alive,
        )
        self.servers.append(self._rest_server.start())
        if self._grpc is not None:
            self.servers.append(self._grpc.run())
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def stop_serving(self) -> None:
        """Close all servers."""
        self._rest_server.stop()
        if self._grpc is not None:
            await self._grpc.stop()
