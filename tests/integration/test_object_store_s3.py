"""Large results in S3: the real s3fs against a real HTTP server that speaks S3 (moto)."""

import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from eventing.errors import ObjectGone, ObjectsUnavailable
from eventing.store.objects.backup import BackupSettings, run
from eventing.store.objects.object_store import ObjectStore
from tests.redis_server import free_port

pytest.importorskip("s3fs")
pytestmark = pytest.mark.skipif(find_spec("moto") is None, reason="moto is not installed")
_SIGNED = {"authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The server, as a process: vLLM looks into every module of ours, and Flask's do not bear that."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    with httpx.Client() as client:
        for _ in range(600):
            with suppress(httpx.TransportError):
                client.get(f"{url}/moto-api/")
                break
            time.sleep(0.05)
    yield url
    server.terminate()
    server.wait(60)


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a folder in a bucket of its own, with credentials in the environment as in a pod."""
    for variable, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ENDPOINT_URL": endpoint,
    }.items():
        monkeypatch.setenv(variable, value)
    name = f"torpor-{secrets.token_hex(4)}"
    assert httpx.put(f"{endpoint}/{name}", headers=_SIGNED).status_code == 200
    return f"s3://{name}/files/results"


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


async def test_backups_of_the_store_go_to_a_bucket_and_old_ones_leave_it(
    bucket: str, tmp_path: Path
) -> None:
    snapshot = tmp_path / "dump.rdb"
    snapshot.write_bytes(secrets.token_bytes(11 * 1024 * 1024))  # more than one part of an upload
    settings = BackupSettings(backup_url=bucket, backup_file=snapshot, backups_kept=2)

    names = [await run(settings, now_s) for now_s in (1_800_000_000, 1_800_003_600, 1_800_007_200)]

    objects = ObjectStore(bucket)
    assert await objects.names() == names[1:]
    assert await objects.read(names[2], 0, 12 * 1024 * 1024) == snapshot.read_bytes()
