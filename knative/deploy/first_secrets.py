"""`python -m knative.deploy.first_secrets`: creates the Secrets that do not exist yet.

Run once by a Job at install, with the right to create Secrets and to read these three. Existing Secrets are
unchanged, so running it again, or providing your own, is safe. Secrets are random and are never printed.
"""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":
    # Before the imports, which take a second: as PID 1 a process ignores what it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1))

import asyncio
import base64
import hashlib
import json
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from eventing.api_key import SCOPES, mint
from knative.deploy.emit import Resource
from knative.deploy.errors import Conflict, DeployError
from knative.deploy.render import parts
from knative.deploy.rollout.client import Cluster, Ref, connected

Random = Callable[[int], str]
# What the external scaler sends: a greeting, and reads of one key at a time.
SCALER_MAY = (
    "+hello +auth +ping +select +client +role +time +xinfo +xpending +xlen "
    "+zcard +zrange +hgetall +hkeys +hmget +hget +hexists +hstrlen +exists"
)


class FirstSecretsSettings(BaseSettings):
    """Read once at start from `TORPOR_*` variables."""

    model_config = SettingsConfigDict(env_prefix="TORPOR_", frozen=True, extra="ignore")

    namespace: str = Field("torpor", pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    """Where the Secrets go; the Job fills in its own."""
    store_replicas: int = Field(1, ge=1)
    """More than one: the addresses of the store are those of its sentinels."""


def redis_secret(namespace: str, token: Random, replicas: int = 1) -> dict[str, str]:
    """Give the store's users: ours has all rights, KEDA's may read queue lengths only, and the external scaler's
    may read queues and records.
    """
    password, keda, scaler = token(32), token(32), token(32)
    # What KEDA's redis-streams scaler sends: its client's greeting, and the counts.
    may = "+hello +auth +ping +select +client +info +xinfo +xpending +xlen"
    users = (
        f"user default on #{_sha256(password)} ~* &* +@all\n"
        f"user keda on #{_sha256(keda)} resetchannels %R~torpor:* -@all {may}\n"
        f"user scaler on #{_sha256(scaler)} resetchannels %R~torpor:* -@all {SCALER_MAY}\n"
    )
    return {
        "password": password,
        "url": _store_url("", password, namespace, replicas),
        "users.acl": users,
        "keda-username": "keda",
        "keda-password": keda,
        "scaler-url": _store_url("scaler", scaler, namespace, replicas),
    }


def _store_url(user: str, password: str, namespace: str, replicas: int) -> str:
    named = parts.store_hosts(namespace, replicas)
    if replicas == 1:
        return f"redis://{user}:{password}@{named[0]}:{parts.REDIS_PORT}/0"
    hosts = ",".join(f"{host}:{parts.SENTINEL_PORT}" for host in named)
    login = f"sentinel_password={password}" + (f"&sentinel_username={user}" if user else "")
    return f"redis+sentinel://{user}:{password}@{hosts}/{parts.WATCHED}/0?{login}"


def keys_secret(now_s: int) -> dict[str, str]:
    """Give the api's file of hashed keys, and the texts of the two keys in it."""
    admin, admin_text = mint("default", now_s=now_s, scopes=SCOPES, name="first")
    scraper, scraper_text = mint("monitoring", now_s=now_s, scopes=["metrics:read"], name="scraper")
    records = [asdict(admin), asdict(scraper)]
    return {
        "keys.json": json.dumps(records),
        "first-key": admin_text,
        "metrics-key": scraper_text,
    }


def internal_secret(token: Random) -> dict[str, str]:
    """Give the token of deliveries to the api."""
    return {"token": token(32)}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def secret(name: str, namespace: str, data: dict[str, str]) -> Resource:
    """Give the Secret object."""
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/part-of": "torpor"},
        },
        "type": "Opaque",
        "data": encoded,
    }


async def ensure(cluster: Cluster, namespace: str, token: Random, replicas: int = 1) -> list[str]:
    """Create the missing Secrets; give their names. Losing a race to another process is not an error."""
    makers: dict[str, Callable[[], dict[str, str]]] = {
        parts.REDIS_SECRET: lambda: redis_secret(namespace, token, replicas),
        parts.KEYS_SECRET: lambda: keys_secret(int(time.time())),
        parts.INTERNAL_SECRET: lambda: internal_secret(token),
    }
    made = []
    for name, make in makers.items():
        if await cluster.get(Ref("v1", "Secret", name, namespace)) is None:
            try:
                await cluster.create(secret(name, namespace, make()))
            except Conflict:
                continue
            made.append(name)
    return made


async def run() -> Any:
    """Make the Secrets of this Job's namespace."""
    async with connected() as cluster:
        settings = FirstSecretsSettings()
        return await ensure(
            cluster, settings.namespace, secrets.token_urlsafe, settings.store_replicas
        )


def main() -> int:
    """Exit status: 0 when all Secrets exist, 1 with one line when not."""
    try:
        made = asyncio.run(run())
    except DeployError as error:
        sys.stderr.write(f"torpor first-secrets: {error}\n")
        return 1
    sys.stdout.write(f"made: {', '.join(made) or 'nothing, all were there'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
