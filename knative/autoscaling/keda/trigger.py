"""KEDA's triggers: from the state of a queue to the number that each trigger reads.

Called by the users of the KEDA policy (local stack, simulator), which know the queue. Must not know thresholds.
Source: KEDA v2.20.2 `pkg/scalers/*_scaler.go`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import assert_never

from knative.autoscaling.hpa.metric import TargetType

# What go-redis makes of a lag that Redis does not know: below every threshold, so it never activates.
_UNKNOWN_LAG = -1.0


@dataclass(frozen=True, slots=True)
class Backlog:
    """The state of a queue.

    `undelivered`: entries not delivered yet (None: the broker cannot tell); `in_flight`: delivered and not
    acknowledged; `length`: all stored entries; `queries`: results of named queries elsewhere (None: no such series;
    absent: unreachable).
    """

    undelivered: int | None = 0
    in_flight: int = 0
    length: int = 0
    has_group: bool = True
    partition_lags: tuple[int, ...] = ()
    stuck_partitions: frozenset[int] = frozenset()
    published_per_s: float = 0.0
    delivered_per_s: float = 0.0
    queries: Mapping[str, float | None] = field(default_factory=dict)


class StreamMode(StrEnum):
    """What a redis-streams trigger counts."""

    LAG = "lagCount"  #: entries not yet delivered to the group; the only mode that wakes from zero
    PENDING = "pendingEntriesCount"  #: entries delivered and not acknowledged
    LENGTH = "streamLength"  #: all entries of the stream


@dataclass(frozen=True, slots=True)
class RedisStreams:
    """Trigger type `redis-streams`."""

    mode: StreamMode


class QueueMode(StrEnum):
    """What a rabbitmq trigger measures."""

    LENGTH = "QueueLength"  #: messages in the queue
    RATE = "MessageRate"  #: messages published a second
    DELIVER_GET_RATE = "DeliverGetRate"  #: messages delivered a second


@dataclass(frozen=True, slots=True)
class RabbitMq:
    """Trigger type `rabbitmq`; only the http protocol sees messages that are not acknowledged."""

    mode: QueueMode
    is_http: bool
    excludes_unacknowledged: bool = False


@dataclass(frozen=True, slots=True)
class Kafka:
    """Trigger type `kafka`; `threshold` is the lag one replica should carry."""

    threshold: float
    allows_idle_consumers: bool = False
    is_limited_to_partitions_with_lag: bool = False
    excludes_persistent_lag: bool = False


@dataclass(frozen=True, slots=True)
class Prometheus:
    """Trigger type `prometheus`; a missing series reads as 0 unless `ignores_null` is false."""

    query: str
    ignores_null: bool = True


@dataclass(frozen=True, slots=True)
class External:
    """Trigger types `external` and `external-push`: a gRPC server names the metric."""

    address: str
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Resource:
    """Trigger types `cpu` and `memory`: the HPA reads the pods itself."""

    resource: str


Source = RedisStreams | RabbitMq | Kafka | Prometheus | External | Resource


@dataclass(frozen=True, slots=True)
class ScalerTrigger:
    """One trigger: its source, the target for one replica, the activation threshold."""

    key: str
    source: Source
    target: float
    activation: float = 0.0
    target_type: TargetType = TargetType.AVERAGE_VALUE


def measure(trigger: ScalerTrigger, backlog: Backlog) -> float | None:
    """The number that `trigger` reads, or None when it fails."""
    source = trigger.source
    match source:
        case RedisStreams():
            return _stream(source, backlog)
        case RabbitMq():
            return _queue(source, backlog)
        case Kafka():
            return _kafka(source, backlog)
        case Prometheus():
            return _query(source, backlog)
        case External():
            return backlog.queries.get(trigger.key)
        case Resource():
            return None
        case _ as unknown:
            assert_never(unknown)


def measured(triggers: tuple[ScalerTrigger, ...], backlog: Backlog) -> dict[str, float | None]:
    """The number of every trigger, by its key."""
    return {trigger.key: measure(trigger, backlog) for trigger in triggers}


def _stream(source: RedisStreams, backlog: Backlog) -> float | None:
    match source.mode:
        case StreamMode.LENGTH:
            return float(backlog.length)
        case StreamMode.PENDING:
            # XPENDING answers NOGROUP: an error, and errors keep the cooldown from starting.
            return float(backlog.in_flight) if backlog.has_group else None
        case StreamMode.LAG:
            if not backlog.has_group:
                return float(backlog.length)
            if backlog.undelivered is None:
                return _UNKNOWN_LAG
            return float(backlog.undelivered)
        case _ as unknown:
            assert_never(unknown)


def _queue(source: RabbitMq, backlog: Backlog) -> float:
    match source.mode:
        case QueueMode.RATE:
            return backlog.published_per_s
        case QueueMode.DELIVER_GET_RATE:
            return backlog.delivered_per_s
        case QueueMode.LENGTH:
            ready = backlog.undelivered or 0
            if source.is_http and not source.excludes_unacknowledged:
                return float(ready + backlog.in_flight)
            return float(ready)
        case _ as unknown:
            assert_never(unknown)


def _kafka(source: Kafka, backlog: Backlog) -> float:
    """The lag, in-flight records included, limited to what the partitions can be shared among."""
    lags = backlog.partition_lags or ((backlog.undelivered or 0) + backlog.in_flight,)
    stuck = backlog.stuck_partitions if source.excludes_persistent_lag else frozenset()
    total = sum(lag for partition, lag in enumerate(lags) if partition not in stuck)
    if source.is_limited_to_partitions_with_lag:
        useful = sum(lag > 0 for lag in lags)
    elif source.allows_idle_consumers or not backlog.partition_lags:
        return float(total)
    else:
        useful = len(lags)
    return min(float(total), useful * source.threshold)


def _query(source: Prometheus, backlog: Backlog) -> float | None:
    if source.query not in backlog.queries:
        return None
    value = backlog.queries[source.query]
    if value is None:
        return 0.0 if source.ignores_null else None
    return value
