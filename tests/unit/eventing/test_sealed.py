"""Sealed credentials of a request's tool servers: who can open them, and what they show."""

import base64
import os
from dataclasses import replace
from pathlib import Path

import pytest

from eventing.job.tools.sealed import Binding, NotSealedHere, SealingKeys, seal, unseal

KEYS = SealingKeys((os.urandom(32), os.urandom(32)))
FOR = Binding(tenant="acme", job_id="job_1", origin="https://mcp.example")
HEADERS = {"authorization": "Bearer canary-1"}


def test_sealed_headers_open_for_their_tenant_job_and_origin_alone() -> None:
    sealed = seal(KEYS, FOR, HEADERS)
    assert unseal(KEYS, FOR, sealed) == HEADERS
    for other in (
        replace(FOR, tenant="other"),
        replace(FOR, job_id="job_2"),
        replace(FOR, origin="https://evil.example"),
    ):
        with pytest.raises(NotSealedHere):
            unseal(KEYS, other, sealed)


def test_a_sealed_text_shows_nothing_of_its_content_and_no_two_are_equal() -> None:
    sealed = seal(KEYS, FOR, HEADERS)
    assert "canary" not in sealed
    assert sealed != seal(KEYS, FOR, HEADERS)
    assert "key" not in repr(KEYS).replace("SealingKeys", "")


def test_every_changed_character_is_noticed() -> None:
    sealed = seal(KEYS, FOR, HEADERS)
    for place in range(len(sealed) - 1):  # the last character has unused bits
        changed = sealed[:place] + ("A" if sealed[place] != "A" else "B") + sealed[place + 1 :]
        with pytest.raises(NotSealedHere) as raised:
            unseal(KEYS, FOR, changed)
        assert "canary" not in str(raised.value)


def test_a_replaced_key_still_opens_what_it_sealed(tmp_path: Path) -> None:
    old, new = os.urandom(32), os.urandom(32)
    sealed = seal(SealingKeys((old,)), FOR, HEADERS)
    path = tmp_path / "keys"
    path.write_text("\n".join(base64.b64encode(key).decode() for key in (new, old)))
    assert unseal(SealingKeys.read(path), FOR, sealed) == HEADERS
    with pytest.raises(NotSealedHere):
        unseal(SealingKeys((new,)), FOR, sealed)


@pytest.mark.parametrize("text", ["", "short", base64.b64encode(b"x" * 31).decode()])
def test_a_file_without_whole_keys_is_refused_without_repeating_it(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ValueError, match="32 bytes") as raised:
        SealingKeys.read(path)
    assert not text or text not in str(raised.value)
