"""The gRPC server that KEDA polls: whether there is work, and the number of replicas for it.

Called by `python -m knative.external_scaler` and by tests. Must not know how the policy decides. One metric with
target 1: its value is the number of replicas, so the HPA has nothing to compute. While the store is unavailable
KEDA gets an error, and an error never scales to zero.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog

from eventing.clock import Clock
from eventing.errors import Unavailable
from knative.autoscaling.setting import RefusedSettingsError
from knative.external_scaler import protocol
from knative.external_scaler.scaler import METRIC, Scaler, WorkSource, read_metadata

_log = structlog.get_logger()
_STOP_GRACE_S = 2.0


class ScalerServer:
    """Answers KEDA; `run` updates every ScaledObject's number until it is cancelled."""

    def __init__(
        self,
        source: WorkSource,
        clock: Clock,
        *,
        queue: str,
        model: str,
        tick_s: float = 1.0,
        look_timeout_s: float = 5.0,
    ) -> None:
        self._source = source
        self._clock = clock
        self._queue = queue
        self._model = model
        self._tick_s = tick_s
        self._look_timeout_s = look_timeout_s
        self._scalers: dict[tuple[str, str], Scaler] = {}
        self._failed: dict[tuple[str, str], str] = {}
        self._changed = asyncio.Condition()

    async def run(self, address: str, on_listening: Callable[[int], None]) -> None:
        """Listen on `address` (`host:port`, port 0 picks one) and update until cancelled."""
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((self._handlers(),))
        port = server.add_insecure_port(address)
        await server.start()
        on_listening(port)
        try:
            while True:
                await self._look_at_all()
                await asyncio.sleep(self._tick_s)
        finally:
            await asyncio.shield(server.stop(_STOP_GRACE_S))

    async def _look_at_all(self) -> None:
        for key, scaler in list(self._scalers.items()):
            await self._look(key, scaler)
        async with self._changed:
            self._changed.notify_all()

    async def _look(self, key: tuple[str, str], scaler: Scaler) -> None:
        settings = scaler.settings
        try:
            async with asyncio.timeout(self._look_timeout_s):
                look = await self._source.look(settings.queue, settings.model)
        except (Unavailable, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            self._failed[key] = f"cannot read the queue: {reason}"
            _log.debug("look_failed", action="look", queue=settings.queue, error=str(error))
            return
        self._failed.pop(key, None)
        before = scaler.replicas
        if scaler.see(look, self._clock.monotonic_s()) != before:
            _log.info(
                "decided",
                action="decide",
                queue=settings.queue,
                replicas=scaler.replicas,
                waiting=len(look.waiting),
                running=look.running,
            )

    async def _scaler(self, ref: Any, context: Any) -> Scaler:
        """The scaler of a ScaledObject, created at its first request; aborts an invalid call."""
        key = (str(ref.namespace), str(ref.name))
        try:
            settings = read_metadata(dict(ref.scalerMetadata), queue=self._queue, model=self._model)
        except RefusedSettingsError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise
        scaler = self._scalers.get(key)
        if scaler is None or scaler.settings != settings:
            scaler = self._scalers[key] = Scaler(settings)
            await self._look(key, scaler)
        if key in self._failed:
            await context.abort(grpc.StatusCode.UNAVAILABLE, self._failed[key])
        return scaler

    async def _is_active(self, ref: Any, context: Any) -> Any:
        scaler = await self._scaler(ref, context)
        return protocol.IsActiveResponse(result=scaler.replicas > 0)

    async def _stream_is_active(self, ref: Any, context: Any) -> AsyncIterator[Any]:
        """The state now and at every change, so that KEDA need not wait for its poll."""
        said: bool | None = None
        while True:
            scaler = await self._scaler(ref, context)
            is_active = scaler.replicas > 0
            if is_active is not said:
                said = is_active
                yield protocol.IsActiveResponse(result=is_active)
            async with self._changed:
                await self._changed.wait()

    async def _metric_spec(self, ref: Any, context: Any) -> Any:
        await self._scaler(ref, context)
        spec = protocol.MetricSpec(metricName=METRIC, targetSize=1, targetSizeFloat=1.0)
        return protocol.GetMetricSpecResponse(metricSpecs=[spec])

    async def _metrics(self, request: Any, context: Any) -> Any:
        scaler = await self._scaler(request.scaledObjectRef, context)
        value = protocol.MetricValue(
            metricName=METRIC,
            metricValue=scaler.replicas,
            metricValueFloat=float(scaler.replicas),
        )
        return protocol.GetMetricsResponse(metricValues=[value])

    def _handlers(self) -> grpc.GenericRpcHandler:
        ref, request = protocol.ScaledObjectRef, protocol.GetMetricsRequest
        return grpc.method_handlers_generic_handler(
            protocol.SERVICE,
            {
                "IsActive": _unary(self._is_active, ref),
                "StreamIsActive": grpc.unary_stream_rpc_method_handler(
                    self._stream_is_active,
                    request_deserializer=ref.FromString,
                    response_serializer=_bytes_of,
                ),
                "GetMetricSpec": _unary(self._metric_spec, ref),
                "GetMetrics": _unary(self._metrics, request),
            },
        )


def _unary(
    method: Callable[[Any, Any], Awaitable[Any]], request: Any
) -> "grpc.RpcMethodHandler[Any, Any]":
    return grpc.unary_unary_rpc_method_handler(
        method, request_deserializer=request.FromString, response_serializer=_bytes_of
    )


def _bytes_of(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
