"""Which engine of the vector index an address opens."""

import pytest
from pydantic import SecretStr, ValidationError

from eventing.redis.connection import connect
from steps.index.embedded import EmbeddedIndex
from steps.index.opening import open_index
from steps.index.pgvector import PgVectorIndex
from steps.index.vector_set import VectorSetIndex
from steps.settings import StepsSettings


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("", EmbeddedIndex),
        ("postgresql://u:secret@127.0.0.1:1/x", PgVectorIndex),
        ("postgres://127.0.0.1:1/x", PgVectorIndex),
        ("redis://:secret@127.0.0.1:1/0", VectorSetIndex),
        ("rediss://127.0.0.1:1", VectorSetIndex),
        ("redis+sentinel://127.0.0.1:1/primary", VectorSetIndex),
    ],
)
async def test_the_address_names_the_engine_and_nothing_is_dialled(url: str, kind: type) -> None:
    store = connect("redis://127.0.0.1:1/0")
    index = open_index(StepsSettings(index_url=SecretStr(url)), store)

    assert type(index) is kind
    await index.aclose()
    await store.aclose()


@pytest.mark.parametrize("url", ["mysql://u:secret@x", "redis:// x:secret", "127.0.0.1:secret"])
def test_another_address_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ValidationError) as raised:
        StepsSettings(index_url=SecretStr(url))

    (error,) = raised.value.errors()
    assert "postgresql://" in error["msg"]
    assert "secret" not in error["msg"]
