"""gRPC: KServe's v2 service at a configurable address, with our errors as gRPC status codes.

Called by `predictor.serving.kserve_server`, only when a port is set. KServe's own server binds all addresses and
answers an invalid field with INTERNAL. Must not know jobs or events.
"""

from collections.abc import Callable
from typing import Any, Final

import grpc
import structlog
from grpc_interceptor.server import AsyncServerInterceptor
from kserve.constants.constants import MAX_GRPC_MESSAGE_LENGTH
from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady, ServerNotReady
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

from eventing.errors import BadRequest, Overloaded, Unavailable
from predictor.errors import where
from predictor.serving.direct_access import carries

_log = structlog.get_logger()

_OPTIONS: Final = (
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_LENGTH),
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_LENGTH),
    (
        "grpc.so_reuseport",
        0,
    ),  # a taken port is an error; with SO_REUSEPORT the servers would share its calls
)

_PROBES: Final = frozenset({"ServerLive", "ServerReady", "ModelReady"})


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The gRPC status of an error, with the field when the caller is at fault."""
    match error:
        case BadRequest(message=message, field=field):
            return grpc.StatusCode.INVALID_ARGUMENT, f"{field}: {message}" if field else message
        case Overloaded(message=message):
            return grpc.StatusCode.RESOURCE_EXHAUSTED, message
        case Unavailable(message=message):
            return grpc.StatusCode.UNAVAILABLE, message
        case InvalidInput(reason=reason):
            return grpc.StatusCode.INVALID_ARGUMENT, str(reason)
        case ModelNotFound(reason=reason):
            return grpc.StatusCode.NOT_FOUND, str(reason)
        case ModelNotReady() | ServerNotReady():
            return grpc.StatusCode.UNAVAILABLE, "the model is not ready"
        case NotImplementedError():
            return grpc.StatusCode.UNIMPLEMENTED, "not served"
        case _:
            return grpc.StatusCode.INTERNAL, "the predictor failed"


class GrpcServer:
    """Serves until `stop`."""

    def __init__(
        self,
        address: str,
        dataplane: DataPlane,
        repository: ModelRepositoryExtension,
        token: str = "",
    ) -> None:
        """`token` is required as `authorization: Bearer TOKEN`; empty requires none."""
        self._address = address
        self._token = token
        self._servicer = InferenceServicer(dataplane, repository)
        self._server: Any = None

    async def run(self) -> None:
        """Raises `RuntimeError` when the address is taken."""
        self._server = grpc.aio.server(interceptors=(_Statuses(self._token),), options=_OPTIONS)
        grpc_predict_v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            self._servicer, self._server
        )
        self._server.add_insecure_port(self._address)
        await self._server.start()
        _log.info("grpc is served", action="grpc", address=self._address)
        await self._server.wait_for_termination()

    async def stop(self) -> None:
        """Close open calls at once; the drain is over."""
        if self._server is not None:
            await self._server.stop(grace=0)


class _Statuses(AsyncServerInterceptor):
    """The outermost interceptor of a call. Logs only an unexpected error's type and place."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept(
        self,
        method: Callable[[Any, Any], Any],
        request_or_iterator: Any,
        context: Any,
        method_name: str,
    ) -> Any:
        if not self._may(context, method_name):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "calls need TORPOR_DIRECT_TOKEN")
        try:
            return await method(request_or_iterator, context)
        except Exception as error:
            code, words = status_of(error)
            if code is grpc.StatusCode.INTERNAL:
                _log.error("call broke", action="grpc", method=method_name, **where(error))
        await context.abort(code, words)

    def _may(self, context: Any, method_name: str) -> bool:
        if not self._token or method_name.rsplit("/", 1)[-1] in _PROBES:
            return True
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        return carries(str(given), self._token)
