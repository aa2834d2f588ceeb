"""The secrets that a first deploy makes."""

from __future__ import annotations

import base64
from pathlib import Path

from eventing.api_key import FileKeys, key_id_of
from knative.deploy import first_secrets
from knative.deploy.rollout.client import Cluster
from tests.integration.deploy.api_server import ApiServer


async def test_first_secrets_are_made_once_and_never_overwritten(
    cluster: Cluster, server: ApiServer
) -> None:
    made = await first_secrets.ensure(cluster, "torpor", lambda size: "t" * size)
    again = await first_secrets.ensure(cluster, "torpor", lambda size: "u" * size)

    assert made == ["torpor-redis", "torpor-api-keys", "torpor-internal"]
    assert again == []
    token = server.find("Secret", "torpor-internal")["data"]["token"]
    assert base64.b64decode(token) == b"t" * 32


async def test_losing_the_race_for_a_secret_is_not_an_error(
    cluster: Cluster, server: ApiServer
) -> None:
    server.fails.append(("POST", "secrets", 409, "already exists"))

    made = await first_secrets.ensure(cluster, "torpor", lambda size: "t" * size)

    assert made == ["torpor-api-keys", "torpor-internal"]


async def test_the_first_keys_open_the_api_and_are_stored_hashed(
    cluster: Cluster, server: ApiServer, tmp_path: Path
) -> None:
    await first_secrets.ensure(cluster, "torpor", lambda size: "t" * size)

    held = server.find("Secret", "torpor-api-keys")["data"]
    data = {name: base64.b64decode(value).decode() for name, value in held.items()}
    path = tmp_path / "keys.json"
    path.write_text(data["keys.json"])
    keys = FileKeys(path)
    for text, scope in ((data["first-key"], "admin"), (data["metrics-key"], "metrics:read")):
        key = await keys.find(key_id_of(text))
        assert key is not None
        assert key.opens(text, 0)
        assert scope in key.scopes
        assert text not in data["keys.json"]
