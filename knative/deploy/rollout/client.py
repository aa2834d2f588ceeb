"""A client of the Kubernetes API for deployments: apply, read, watch, delete, logs.

Called by the commands. Only documented API behaviour: discovery, server-side apply with our field manager, dry run,
list-then-watch. Must not know the meaning of objects.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config

from knative.deploy.emit import Resource
from knative.deploy.errors import (
    ApiFault,
    ClusterForbidden,
    ClusterUnreachable,
    Conflict,
    FieldConflict,
    Gone,
    Invalid,
    MissingKind,
    ObjectNotFound,
)

FIELD_MANAGER = "torpor"
REQUEST_TIMEOUT_S = 30.0
WATCH_S = 60  # the server ends a watch after this; then it is listed again
TRIES = 5
_MANAGER = re.compile(r'conflict with "([^"]*)"')
_BUSY = (429, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Ref:
    """An object's address."""

    api_version: str
    kind: str
    name: str
    namespace: str | None = None

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind's URL parts, from discovery."""

    plural: str
    is_namespaced: bool


def ref_of(resource: Resource) -> Ref:
    """Give a resource's address."""
    data = resource["metadata"]
    return Ref(resource["apiVersion"], resource["kind"], data["name"], data.get("namespace"))


class Cluster:
    """One API server. Safe to use from several tasks; close it when done."""

    def __init__(
        self, api: kubernetes_client.ApiClient, *, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> None:
        self._api = api
        self._timeout_s = timeout_s
        self._kinds: dict[str, Mapping[str, Kind]] = {}

    async def kind(self, api_version: str, kind: str) -> Kind:
        """Give how a kind is addressed. Raises MissingKind when the cluster does not know it."""
        if api_version not in self._kinds:
            self._kinds[api_version] = await self._discover(api_version)
        found = self._kinds[api_version].get(kind)
        if found is None:
            raise MissingKind(api_version, kind)
        return found

    async def _discover(self, api_version: str) -> Mapping[str, Kind]:
        try:
            answer = await self._call("GET", _root(api_version))
        except ObjectNotFound:
            return {}
        return {
            entry["kind"]: Kind(entry["name"], entry["namespaced"])
            for entry in answer["resources"]
            if "/" not in entry["name"]  # subresources
        }

    async def get(self, ref: Ref) -> Resource | None:
        """Give an object, or None."""
        try:
            return await self._call("GET", await self._path(ref))
        except ObjectNotFound:
            return None

    async def apply(
        self, resource: Resource, *, is_dry_run: bool = False, takes_over: bool = False
    ) -> Resource:
        """Give the object after a server-side apply by our field manager.

        Raises Conflict naming the other managers, unless `takes_over`. Idempotent.
        """
        query = {"fieldManager": FIELD_MANAGER, "force": str(takes_over).lower()}
        query["fieldValidation"] = "Strict"
        if is_dry_run:
            query["dryRun"] = "All"
        path = await self._path(ref_of(resource))
        return await self._call(
            "PATCH", path, query, resource, content_type="application/apply-patch+yaml"
        )

    async def create(self, resource: Resource) -> Resource:
        """Create an object. Raises Conflict when it exists: nothing is overwritten.

        Not an apply, which needs the right to patch that the first-secrets job has not.
        """
        path = await self._path(ref_of(resource))
        return await self._call("POST", path.rpartition("/")[0], None, resource)

    async def patch(self, ref: Ref, change: Resource) -> Resource:
        """Give the object after a merge patch. Raises NotFound."""
        query = {"fieldManager": FIELD_MANAGER}
        path = await self._path(ref)
        return await self._call(
            "PATCH", path, query, change, content_type="application/merge-patch+json"
        )

    async def delete(self, ref: Ref) -> bool:
        """Delete an object and what it owns; False when it did not exist."""
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        try:
            await self._call("DELETE", await self._path(ref), None, body)
        except ObjectNotFound:
            return False
        return True

    async def list(
        self, api_version: str, kind: str, namespace: str | None, **selectors: str
    ) -> tuple[list[Resource], str]:
        """Give all objects of a kind, and the version to watch from.

        Selectors: `labelSelector`, `fieldSelector`. List items have no kind; it is added.
        """
        path = await self._path(Ref(api_version, kind, "", namespace))
        items: list[Resource] = []
        query = {"limit": "500", **selectors}
        while True:
            answer = await self._call("GET", path, query)
            for item in answer.get("items") or []:
                items.append({"apiVersion": api_version, "kind": kind, **item})
            data = answer.get("metadata") or {}
            if not data.get("continue"):
                return items, str(data.get("resourceVersion", ""))
            query = {**query, "continue": data["continue"]}

    async def follow(self, ref: Ref) -> AsyncGenerator[Resource | None, None]:
        """Give an object now and after every change; None while it does not exist.

        Never ends by itself. A watch that breaks or expires starts again with a new list, so a change may be seen
        late but is never missed.
        """
        selector = {"fieldSelector": f"metadata.name={ref.name}"}
        while True:
            items, version = await self.list(ref.api_version, ref.kind, ref.namespace, **selector)
            yield items[0] if items else None
            try:
                async for kind, item in self._watch(ref, {**selector, "resourceVersion": version}):
                    yield None if kind == "DELETED" else item
            except (Gone, ClusterUnreachable):
                await asyncio.sleep(0.2)

    async def _watch(
        self, ref: Ref, selector: Mapping[str, str]
    ) -> AsyncIterator[tuple[str, Resource]]:
        path = await self._path(Ref(ref.api_version, ref.kind, "", ref.namespace))
        query = {**selector, "watch": "true", "timeoutSeconds": str(WATCH_S)}
        async with self._open("GET", path, query, timeout_s=WATCH_S + 10) as response:
            async for line in _lines(response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise Gone(str(event["object"].get("message")))
                if event["type"] != "BOOKMARK":
                    yield event["type"], event["object"]

    async def logs(
        self, namespace: str, pod: str, *, container: str, follows: bool, tail: int
    ) -> AsyncIterator[str]:
        """Give a container's log lines; with `follows` until it ends."""
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        query = {"container": container, "follow": str(follows).lower(), "tailLines": str(tail)}
        timeout = 24 * 3600.0 if follows else self._timeout_s
        async with self._open("GET", path, query, timeout_s=timeout) as response:
            async for line in _lines(response):
                yield line.decode(errors="replace")

    async def _path(self, ref: Ref) -> str:
        kind = await self.kind(ref.api_version, ref.kind)
        root = _root(ref.api_version)
        if kind.is_namespaced and ref.namespace:
            root += f"/namespaces/{quote(ref.namespace)}"
        return f"{root}/{kind.plural}" + (f"/{quote(ref.name)}" if ref.name else "")

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Resource | None = None,
        *,
        content_type: str = "application/json",
    ) -> Resource:
        """Give the answer's object. Busy answers (429, 5xx) are retried, as the API asks for.

        All our calls are idempotent: apply, merge patch, delete and reads.
        """
        for attempt in range(TRIES):
            try:
                async with self._open(
                    method, path, query, body, content_type=content_type
                ) as response:
                    answer: Resource = json.loads(await response.read())
                    return answer
            except ApiFault as fault:
                if fault.status not in _BUSY or attempt == TRIES - 1:
                    raise
                await asyncio.sleep(fault.retry_after_s or 0.2 * 2**attempt)
        raise AssertionError("the loop returns or raises")

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Resource | None = None,
        *,
        content_type: str = "application/json",
        timeout_s: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Give an open successful response. Raises the matching ApiFault for any other."""
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        made = await self._api.param_serialize(
            method, path, header_params=headers, auth_settings=["BearerToken"]
        )
        url = made[1] + (f"?{urlencode(query)}" if query else "")
        try:
            answer = await self._api.call_api(
                method, url, made[2], body=body, _request_timeout=timeout_s or self._timeout_s
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ClusterUnreachable(f"{method} {path}: {error or 'no answer in time'}") from error
        response: aiohttp.ClientResponse = answer.response
        try:
            if response.status >= 400:
                raise await _fault(method, path, response)
            yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ClusterUnreachable(f"{method} {path}: {error or 'broke off'}") from error
        finally:
            response.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()  # type: ignore[no-untyped-call]  # generated code


def _root(api_version: str) -> str:
    return f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Give whole lines of any length: one watch event may be larger than a read buffer."""
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in filter(None, lines):
            yield line
    if rest:
        yield rest


async def _fault(method: str, path: str, response: aiohttp.ClientResponse) -> ApiFault:
    text = await response.text()
    try:
        status: dict[str, Any] = json.loads(text)
    except ValueError:
        status = {"message": text[:500]}
    message = str(status.get("message") or response.reason)
    retry_after = response.headers.get("Retry-After", "")
    after = float(retry_after) if retry_after.isdigit() else None
    match response.status:
        case 401 | 403:
            return ClusterForbidden(f"{method} {path}: {message}", response.status)
        case 404:
            return ObjectNotFound(f"{path}: {message}", 404)
        case 409:
            causes = (status.get("details") or {}).get("causes") or []
            return Conflict(message, 409, causes=tuple(map(_cause, causes)))
        case 410:
            return Gone(message)
        case 400 | 422:
            return Invalid(message, response.status)
        case code:
            return ApiFault(f"{method} {path}: {code} {message}", code, retry_after_s=after)


def _cause(cause: Mapping[str, Any]) -> FieldConflict:
    named = _MANAGER.search(str(cause.get("message")))
    return FieldConflict(named[1] if named else "?", str(cause.get("field", "")))


@asynccontextmanager
async def connected(context: str | None = None) -> AsyncIterator[Cluster]:
    """Give the cluster of the kubeconfig, or the one that this process runs in.

    Raises ClusterUnreachable, saying what to do, when there is neither.
    """
    settings = kubernetes_client.Configuration()
    # It writes a line of its own where there is no kubeconfig, before the error that says what to do.
    logging.getLogger("kubernetes.aio.config.kube_config").setLevel(logging.ERROR)
    try:
        try:
            if context is not None:  # given explicitly, so it takes precedence
                raise kubernetes_config.ConfigException
            kubernetes_config.load_incluster_config(  # type: ignore[no-untyped-call]
                client_configuration=settings
            )
        except kubernetes_config.ConfigException:
            await kubernetes_config.load_kube_config(  # type: ignore[no-untyped-call]
                context=context, client_configuration=settings
            )
    except (kubernetes_config.ConfigException, OSError) as error:
        raise ClusterUnreachable(
            f"no cluster: {error}. Set KUBECONFIG, or pass --context, or run inside one."
        ) from error
    cluster = Cluster(kubernetes_client.ApiClient(settings))
    try:
        yield cluster
    finally:
        await cluster.close()
