"""Each trigger sees the one number that its scaler would compute."""

import pytest

from knative.autoscaling.keda.trigger import (
    Backlog,
    External,
    Kafka,
    Prometheus,
    QueueMode,
    RabbitMq,
    RedisStreams,
    ScalerTrigger,
    Source,
    StreamMode,
    measure,
    measured,
)

BUSY = Backlog(undelivered=7, in_flight=3, length=90, queries={"p95": 2.5, "gone": None})


def number(source: Source, backlog: Backlog = BUSY) -> float | None:
    return measure(ScalerTrigger("t", source, target=1), backlog)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (RedisStreams(StreamMode.LAG), 7),
        (RedisStreams(StreamMode.PENDING), 3),
        (RedisStreams(StreamMode.LENGTH), 90),
        (RabbitMq(QueueMode.LENGTH, is_http=True), 10),
        (RabbitMq(QueueMode.LENGTH, is_http=True, excludes_unacknowledged=True), 7),
        (RabbitMq(QueueMode.LENGTH, is_http=False), 7),
        (Kafka(threshold=10), 10),
        (Prometheus("p95"), 2.5),
        (Prometheus("gone"), 0),
        (Prometheus("gone", ignores_null=False), None),
        (Prometheus("unreachable"), None),
    ],
    ids=[
        "redis lag",
        "redis pending",
        "redis length",
        "rabbitmq http counts unacknowledged",
        "rabbitmq http told not to",
        "rabbitmq amqp sees ready only",
        "kafka lag has in-flight",
        "prometheus",
        "prometheus missing series reads zero",
        "prometheus missing series as error",
        "prometheus unreachable",
    ],
)
def test_a_trigger_reads_its_own_number(source: Source, expected: float | None) -> None:
    assert number(source) == expected


def test_without_its_group_lag_reads_the_length_and_pending_fails() -> None:
    fresh = Backlog(undelivered=5, length=5, has_group=False)
    assert number(RedisStreams(StreamMode.LAG), fresh) == 5
    assert number(RedisStreams(StreamMode.PENDING), fresh) is None


def test_an_unknown_redis_lag_reads_minus_one() -> None:
    assert number(RedisStreams(StreamMode.LAG), Backlog(undelivered=None)) == -1


@pytest.mark.parametrize(
    ("kafka", "expected"),
    [
        (Kafka(threshold=10), 30),
        (Kafka(threshold=10, allows_idle_consumers=True), 520),
        (Kafka(threshold=10, is_limited_to_partitions_with_lag=True), 20),
        (Kafka(threshold=10, excludes_persistent_lag=True), 20),
    ],
    ids=["partitions bound it", "idle consumers allowed", "only with lag", "stuck left out"],
)
def test_kafka_lag_is_bounded_by_its_partitions(kafka: Kafka, expected: float) -> None:
    backlog = Backlog(partition_lags=(500, 20, 0), stuck_partitions=frozenset({0}))
    assert number(kafka, backlog) == expected


def test_an_external_trigger_reads_its_servers_value() -> None:
    trigger = ScalerTrigger("work", External("torpor:9090"), target=1)
    assert measured((trigger,), Backlog(queries={"work": 3.5})) == {"work": 3.5}
