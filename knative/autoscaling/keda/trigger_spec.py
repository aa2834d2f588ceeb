"""Reads one trigger of a ScaledObject: type, name, metadata.

Called by `scaledobject.py`. Metadata as each KEDA scaler parses it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from knative.autoscaling.hpa.metric import TargetType
from knative.autoscaling.keda.trigger import (
    External,
    Kafka,
    Prometheus,
    QueueMode,
    RabbitMq,
    RedisStreams,
    Resource,
    ScalerTrigger,
    Source,
    StreamMode,
)
from knative.autoscaling.setting import SettingReader

# Where and how to connect: allowed, and no matter for the number.
_CONNECTION = (
    "address",
    "addressFromEnv",
    "host",
    "hostFromEnv",
    "port",
    "portFromEnv",
    "password",
    "passwordFromEnv",
    "username",
    "usernameFromEnv",
    "enableTLS",
    "unsafeSsl",
    "tls",
    "authModes",
    "databaseIndex",
    "addresses",
    "hosts",
    "ports",
    "sentinelMaster",
    "sentinelUsername",
    "sentinelPassword",
    "vhostName",
    "bootstrapServers",
    "bootstrapServersFromEnv",
    "sasl",
    "version",
    "namespace",
    "customHeaders",
    "timeout",
    "cortexOrgID",
    "queryParameters",
)
_DEFAULT_STREAM_TARGET = 5
_DEFAULT_KAFKA_LAG = 10
# (source, target, activation)
_Read = tuple[Source, float, float]


def read_trigger(entry: Mapping[str, Any], index: int) -> ScalerTrigger:
    """One trigger; raises RefusedSettingsError naming what is missing, unknown or out of range."""
    kind = str(entry.get("type", ""))
    metadata = SettingReader(
        entry.get("metadata") or {}, prefix=f"spec.triggers[{index}].metadata."
    )
    outer = SettingReader(entry, prefix=f"spec.triggers[{index}].")
    outer.ignore("metadata", "authenticationRef", "useCachedMetrics", "name")
    read = _KINDS.get(kind)
    outer.choice("type", "", tuple(_KINDS))
    is_resource = kind in ("cpu", "memory")
    default = TargetType.UTILIZATION if is_resource else TargetType.AVERAGE_VALUE
    target_type = outer.choice("metricType", default.value, tuple(t.value for t in TargetType))
    if target_type == TargetType.UTILIZATION.value and not is_resource:
        outer.refuse("metricType", target_type, "AverageValue, Value")
    outer.finish()
    if read is None:
        raise AssertionError("a trigger type without a reader")
    metadata.ignore(*_CONNECTION)
    source, target, activation = read(metadata)
    if target <= 0:
        metadata.refuse("target", target, "above 0")
    metadata.finish()
    key = str(entry.get("name") or f"s{index}-{kind}")
    return ScalerTrigger(key, source, target, activation, TargetType(target_type))


def _redis_streams(reader: SettingReader) -> _Read:
    reader.required("stream", "the stream's key")
    has_lag = reader.has(StreamMode.LAG.value)
    has_pending = reader.has(StreamMode.PENDING.value)
    has_group = bool(reader.text("consumerGroup", ""))
    if (has_lag or has_pending) and not has_group:
        reader.refuse("consumerGroup", "", "the group whose lag or pending entries are counted")
    if has_lag:
        mode = StreamMode.LAG
    elif has_group:
        mode = StreamMode.PENDING
    else:
        mode = StreamMode.LENGTH
    target = reader.integer(mode.value, _DEFAULT_STREAM_TARGET, low=1)
    reader.ignore(*(member.value for member in StreamMode))
    return RedisStreams(mode), target, reader.integer("activationLagCount", 0)


def _rabbitmq(reader: SettingReader) -> _Read:
    reader.required("queueName", "the queue's name")
    protocol = reader.choice("protocol", "auto", ("auto", "amqp", "http"))
    mode = QueueMode(reader.choice("mode", "QueueLength", tuple(m.value for m in QueueMode)))
    is_http = protocol == "http" or (
        protocol == "auto" and reader.text("host", "").startswith("http")
    )
    if mode is not QueueMode.LENGTH and not is_http:
        reader.refuse("protocol", protocol, f"http (mode {mode} needs the management API)")
    reader.ignore("useRegex", "operation", "pageSize", "metricName")
    excludes = reader.flag("excludeUnacknowledged", False)
    if excludes and not is_http:
        reader.refuse("excludeUnacknowledged", excludes, "only with protocol http")
    target = reader.number("value", 20)
    return RabbitMq(mode, is_http, excludes), target, reader.number("activationValue", 0)


def _kafka(reader: SettingReader) -> _Read:
    reader.required("consumerGroup", "the group whose lag is counted")
    reader.ignore("topic", "offsetResetPolicy", "partitionLimitation", "scaleToZeroOnInvalidOffset")
    target = reader.integer("lagThreshold", _DEFAULT_KAFKA_LAG, low=1)
    source = Kafka(
        threshold=target,
        allows_idle_consumers=reader.flag("allowIdleConsumers", False),
        is_limited_to_partitions_with_lag=reader.flag("limitToPartitionsWithLag", False),
        excludes_persistent_lag=reader.flag("excludePersistentLag", False),
    )
    if source.allows_idle_consumers and source.is_limited_to_partitions_with_lag:
        reader.refuse("limitToPartitionsWithLag", True, "not together with allowIdleConsumers")
    return source, target, reader.integer("activationLagThreshold", 0)


def _prometheus(reader: SettingReader) -> _Read:
    reader.required("serverAddress", "the server's URL")
    query = reader.required("query", "a query that gives one element")
    source = Prometheus(query, reader.flag("ignoreNullValues", True))
    reader.required("threshold", "a number above 0")
    return source, reader.number("threshold", 1), reader.number("activationThreshold", 0)


def _external(reader: SettingReader) -> _Read:
    address = reader.required("scalerAddress", "host:port of the gRPC server")
    reader.ignore("tlsCertFile", "caCert", "tlsClientCert", "tlsClientKey", "unsafeSsl")
    # Everything else is the server's own: it is handed over and never judged here.
    own = reader.rest()
    # The server names target and activity itself; one unit a replica stands for "as it says".
    return External(address, own), 1.0, 0.0


def _cpu(reader: SettingReader) -> _Read:
    reader.ignore("containerName")
    return Resource("cpu"), reader.number("value", 0), 0.0


def _memory(reader: SettingReader) -> _Read:
    reader.ignore("containerName")
    return Resource("memory"), reader.number("value", 0), 0.0


_KINDS: dict[str, Callable[[SettingReader], _Read]] = {
    "redis-streams": _redis_streams,
    "redis-sentinel-streams": _redis_streams,
    "rabbitmq": _rabbitmq,
    "kafka": _kafka,
    "prometheus": _prometheus,
    "external": _external,
    "external-push": _external,
    "cpu": _cpu,
    "memory": _memory,
}
