"""Uploads: bounded in bytes and time, the same under their key, called by their whole name."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import orjson
import pytest
from openai import AsyncOpenAI

from api.settings import ApiSettings
from eventing.clock import SystemClock
from eventing.errors import NotFound
from eventing.store.file_store import FileStore
from eventing.store.redis_store import RedisStore
from tests.integration.api.conftest import Rig, chat_line, rig_over
from tests.integration.api.fakes import FakeBroker

LINE = orjson.dumps(chat_line(custom_id="a"))
DAY_S = 24 * 3600


@asynccontextmanager
async def rig_with(settings: ApiSettings, store: RedisStore, **fields: Any) -> AsyncIterator[Rig]:
    async with rig_over(settings.model_copy(update=fields), store, FakeBroker()) as made:
        yield made


async def upload(rig: Rig, body: bytes, purpose: str = "batch", **headers: str) -> httpx.Response:
    form = {"file": ("in.jsonl", body), "purpose": (None, purpose)}
    return await rig.client.post("/v1/files", files=form, headers=headers)


def left_behind(settings: ApiSettings) -> list[str]:
    """Every file below the place for files."""
    folder = Path(settings.files_url.removeprefix("file://"))
    return [str(path) for path in folder.rglob("*") if path.is_file()]


class TestKeys:
    async def test_another_file_of_the_same_size_under_one_key_is_a_conflict(
        self, rig: Rig
    ) -> None:
        first = await upload(rig, LINE, **{"idempotency-key": "k"})
        same = await upload(rig, LINE, **{"idempotency-key": "k"})
        other = await upload(rig, LINE.replace(b'"a"', b'"b"'), **{"idempotency-key": "k"})

        assert (first.status_code, same.json(), other.status_code) == (200, first.json(), 409)
        content = await rig.client.get(f"/v1/files/{first.json()['id']}/content")
        assert content.content == LINE

    async def test_two_uploads_under_one_key_at_once_do_not_mix(self, rig: Rig) -> None:
        """Over and over, since each try is a race."""
        for n in range(20):
            bodies = [b"a" * 300_000, b"b" * 300_000]
            answers = await asyncio.gather(
                *(upload(rig, body, "user_data", **{"idempotency-key": f"k{n}"}) for body in bodies)
            )
            assert sorted(answer.status_code for answer in answers) == [200, 409]
            won = next(n for n, answer in enumerate(answers) if answer.status_code == 200)
            content = await rig.client.get(f"/v1/files/{answers[won].json()['id']}/content")
            assert content.content == bodies[won]

    async def test_the_loser_leaves_nothing_behind(
        self, rig: Rig, api_settings: ApiSettings
    ) -> None:
        await upload(rig, LINE, **{"idempotency-key": "k"})
        before = left_behind(api_settings)
        await upload(rig, LINE + b"\n" + LINE, **{"idempotency-key": "k"})

        assert left_behind(api_settings) == before


class TestNames:
    @pytest.mark.parametrize(
        ("disposition", "name"),
        [
            pytest.param("filename*=UTF-8''na%C3%AFve%20%E4%B8%AD.jsonl", "naïve 中.jsonl", id="*"),
            pytest.param("filename=\"x\"; filename*=UTF-8''na%C3%AFve", "naïve", id="both"),
            pytest.param("filename*=UTF-8''na%C3%AFve; filename=\"x\"", "naïve", id="turned"),
            pytest.param('filename="=?utf-8?B?bsOkaXZl?="', "näive", id="encoded word"),
            pytest.param('filename="naïve.jsonl"', "naïve.jsonl", id="plain UTF-8"),
            pytest.param("filename*=UTF-8''a%22b%5Cc.jsonl", 'a"b\\c.jsonl', id="quotes"),
        ],
    )
    @pytest.mark.parametrize("is_file_first", [True, False], ids=["file first", "purpose first"])
    async def test_the_name_is_whole(
        self, rig: Rig, disposition: str, name: str, is_file_first: bool
    ) -> None:
        parts = [
            f'Content-Disposition: form-data; name="file"; {disposition}\r\n\r\n'.encode() + LINE,
            b'Content-Disposition: form-data; name="purpose"\r\n\r\nbatch',
        ]
        body = b"".join(
            b"--x\r\n" + part + b"\r\n" for part in (parts if is_file_first else parts[::-1])
        )
        kind = {"content-type": "multipart/form-data; boundary=x"}
        answer = await rig.client.post("/v1/files", content=body + b"--x--\r\n", headers=kind)

        assert (answer.status_code, answer.json().get("filename")) == (200, name)


class TestContent:
    async def test_an_upload_that_is_not_json_lines_is_refused_by_name_and_not_stored(
        self, rig: Rig, api_settings: ApiSettings
    ) -> None:
        answer = await upload(rig, b"custom_id,prompt\n1,hi\n")

        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "file"
        assert "CSV" in answer.json()["error"]["message"]
        assert left_behind(api_settings) == []

    async def test_any_bytes_will_do_for_another_purpose(self, rig: Rig) -> None:
        assert (await upload(rig, b"\x1f\x8b\0", "user_data")).status_code == 200


class TestQuota:
    async def test_a_tenant_over_its_quota_is_refused_until_it_deletes(
        self, api_settings: ApiSettings, store: RedisStore
    ) -> None:
        async with rig_with(api_settings, store, limit_file_bytes=5000) as rig:
            first = await upload(rig, b"x" * 3000, "user_data")
            refused = await upload(rig, b"x" * 3000, "user_data")
            await rig.client.delete(f"/v1/files/{first.json()['id']}")
            third = await upload(rig, b"x" * 3000, "user_data")

        codes = (first.status_code, refused.status_code, third.status_code)
        assert codes == (200, 413, 200)
        assert refused.json()["error"]["code"] == "file_quota_exceeded"
        assert "3000 of 5000" in refused.json()["error"]["message"]

    async def test_uploads_at_once_do_not_pass_it_together(
        self, api_settings: ApiSettings, store: RedisStore
    ) -> None:
        async with rig_with(api_settings, store, limit_file_bytes=5000) as rig:
            answers = await asyncio.gather(
                *(upload(rig, b"x" * 3000, "user_data") for _ in range(6))
            )
            used = await rig.parts.batches.files.used_bytes("default")

        assert sum(answer.status_code == 200 for answer in answers) <= 1
        assert used <= 5000


class TestTime:
    @pytest.fixture
    async def client(self, rig: Rig) -> AsyncIterator[AsyncOpenAI]:
        async with AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none", max_retries=0) as made:
            yield made

    async def test_a_file_expires_after_its_expires_after(self, client: AsyncOpenAI) -> None:
        made = await client.files.create(
            file=("x", b"x"),
            purpose="user_data",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )

        assert made.expires_at == made.created_at + 3600

    async def test_a_batchs_file_is_kept_for_thirty_days_and_others_for_good(
        self, client: AsyncOpenAI
    ) -> None:
        batch = await client.files.create(file=("x", LINE), purpose="batch")
        other = await client.files.create(file=("x", b"x"), purpose="user_data")

        assert batch.expires_at == batch.created_at + 30 * DAY_S
        assert other.expires_at is None

    @pytest.mark.parametrize("seconds", [1, 3599, 30 * DAY_S + 1])
    async def test_a_time_that_cannot_be_names_its_field(
        self, client: AsyncOpenAI, seconds: int
    ) -> None:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.files.create(
                file=("x", b"x"),
                purpose="user_data",
                expires_after={"anchor": "created_at", "seconds": seconds},
            )

        assert refused.value.param == "expires_after.seconds"

    async def test_an_expired_file_is_not_found_and_is_swept(
        self, client: AsyncOpenAI, api_settings: ApiSettings
    ) -> None:
        kept = await client.files.create(file=("x", b"x"), purpose="user_data")
        short = await client.files.create(
            file=("x", b"x"),
            purpose="user_data",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        later = FileStore(api_settings.files_url, Later(2 * 3600))
        with pytest.raises(NotFound):
            await later.card("default", short.id)
        removed = await later.sweep()

        assert removed == 1
        assert [card.id for card in await later.cards("default")] == [kept.id]
        assert not any(short.id in path for path in left_behind(api_settings))

    async def test_parts_of_an_upload_that_died_are_swept_and_those_of_a_live_batch_are_not(
        self, api_settings: ApiSettings
    ) -> None:
        await FileStore(api_settings.files_url).write_part("t", "file-" + "0" * 24, "part-1", b"x")

        a_day_later = await FileStore(api_settings.files_url, Later(DAY_S)).sweep()
        four_days_later = await FileStore(api_settings.files_url, Later(4 * DAY_S)).sweep()

        assert (a_day_later, four_days_later) == (0, 1)
        assert left_behind(api_settings) == []

    async def test_an_upload_that_stands_still_ends_and_leaves_no_scratch(
        self,
        api_settings: ApiSettings,
        store: RedisStore,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        """What came fast must not be time in hand: 16 MiB were worth a quarter of an hour."""
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(scratch))
        head = (
            b"POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 20000000\r\n"
            b"content-type: multipart/form-data; boundary=x\r\n\r\n"
            b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        )
        async with rig_with(api_settings, store, body_timeout_s=0.5) as rig:
            reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(rig.url).port)
            writer.write(head + b"x" * 16 * 1024 * 1024)
            await writer.drain()
            async with asyncio.timeout(60):
                answer = await reader.readline()
            writer.close()

        assert answer.startswith(b"HTTP/1.1 408")
        assert open_scratch(scratch) == 0


def open_scratch(folder: Path) -> int:
    """Files of that folder that this process holds open; a temporary file has no name."""
    held = (link for link in Path("/proc/self/fd").iterdir())
    return sum(str(folder) in str(link.readlink()) for link in held if link.is_symlink())


class Later(SystemClock):
    """So many seconds later than everybody else's."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds

    def wall_ms(self) -> int:
        return super().wall_ms() + self._seconds * 1000
