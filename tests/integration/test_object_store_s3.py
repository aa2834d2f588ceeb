"""Large results in S3: the real s3fs against a real HTTP server that speaks S3 (moto)."""

import secrets
from collections.abc import Iterator

import pytest

from eventing.errors import ObjectGone, ObjectsUnavailable
from eventing.store.object_store import ObjectStore

pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a folder in a bucket, with credentials in the environment as in a pod."""
    import boto3
    from s3fs import S3FileSystem

    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    for variable, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ENDPOINT_URL": endpoint,
    }.items():
        monkeypatch.setenv(variable, value)
    # moto keeps its buckets for as long as the process lives.
    name = f"torpor-{secrets.token_hex(4)}"
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(
        Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    client.close()
    yield f"s3://{name}/files/results"
    S3FileSystem.clear_instance_cache()  # it knows the address of this server
    running.stop()


async def test_objects_are_written_read_in_part_listed_and_removed(bucket: str) -> None:
    objects = ObjectStore(bucket)

    assert await objects.names() == []
    await objects.write("2026-01-01/a", b"0123456789")
    await objects.write("2026-01-01/b", b"x" * 100_000)
    await objects.write("2026-01-01/a", b"abcdefghij")

    assert await objects.names() == ["2026-01-01"]
    assert await objects.names("2026-01-01") == ["a", "b"]
    assert await objects.read("2026-01-01/a", 2, 5) == b"cde"
    await objects.remove("2026-01-01/a")
    with pytest.raises(ObjectGone):
        await objects.read("2026-01-01/a", 0, 1)
    await objects.remove("2026-01-01")
    assert await objects.names() == []


async def test_a_bucket_that_is_not_there_is_said_so(bucket: str) -> None:
    objects = ObjectStore(bucket.replace("torpor", "absent"))

    with pytest.raises(ObjectsUnavailable):
        await objects.write("2026-01-01/a", b"x")
