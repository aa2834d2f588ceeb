"""An HTTP mock of the Kubernetes API server, with faults to order.

Discovery, get, list, watch, server-side apply with conflicts by field manager, merge patch, delete
and logs, by the documented forms of requests and Status answers. State is a dict.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Object = dict[str, Any]
Key = tuple[str, str, str, str]  # apiVersion, plural, namespace, name

KINDS: dict[str, dict[str, tuple[str, bool]]] = {
    "v1": {
        "Namespace": ("namespaces", False),
        "ConfigMap": ("configmaps", True),
        "Secret": ("secrets", True),
        "Service": ("services", True),
        "ServiceAccount": ("serviceaccounts", True),
        "PersistentVolumeClaim": ("persistentvolumeclaims", True),
        "Pod": ("pods", True),
        "Event": ("events", True),
    },
    "apps/v1": {
        "Deployment": ("deployments", True),
        "StatefulSet": ("statefulsets", True),
        "ReplicaSet": ("replicasets", True),
    },
    "batch/v1": {"Job": ("jobs", True)},
    "autoscaling/v2": {"HorizontalPodAutoscaler": ("horizontalpodautoscalers", True)},
    "policy/v1": {"PodDisruptionBudget": ("poddisruptionbudgets", True)},
    "networking.k8s.io/v1": {
        "NetworkPolicy": ("networkpolicies", True),
        "Ingress": ("ingresses", True),
    },
    "rbac.authorization.k8s.io/v1": {
        "Role": ("roles", True),
        "RoleBinding": ("rolebindings", True),
    },
    "serving.kserve.io/v1beta1": {"InferenceService": ("inferenceservices", True)},
    "serving.knative.dev/v1": {
        "Service": ("services", True),
        "Revision": ("revisions", True),
    },
    "serving.kserve.io/v1alpha1": {"ClusterStorageContainer": ("clusterstoragecontainers", False)},
    "keda.sh/v1alpha1": {
        "ScaledObject": ("scaledobjects", True),
        "TriggerAuthentication": ("triggerauthentications", True),
    },
}


@dataclass
class ApiServer:
    """The mock. `fails` answers the next requests that match; `on_apply` plays a controller."""

    objects: dict[Key, Object] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    kinds: dict[str, dict[str, tuple[str, bool]]] = field(
        default_factory=lambda: copy.deepcopy(KINDS)
    )
    fails: list[tuple[str, str, int, Object | str]] = field(default_factory=list)
    on_apply: Callable[[Object], Awaitable[None] | None] | None = None
    logs: dict[str, list[str]] = field(default_factory=dict)
    watch_breaks: int = 0  # so many watches break off after their first event
    version: int = 1
    defaults: Callable[[Object], None] | None = None  # what the server adds to an object
    owners: dict[Key, dict[str, tuple[str, str]]] = field(default_factory=lambda: defaultdict(dict))
    """Who set each field last, and how (`Apply` or `Update`): a field is a path of names; lists are
    one field, as atomic ones are."""
    _history: list[tuple[int, tuple[str, str], Object]] = field(default_factory=list)
    _watchers: dict[tuple[str, str], list[asyncio.Queue[Object | None]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    # what tests do behind the client's back

    def put(self, item: Object) -> Object:
        """Set an object as a controller would, and tell watchers."""
        key = self.key(item)
        self.version += 1
        kind = "MODIFIED" if key in self.objects else "ADDED"
        item["metadata"]["resourceVersion"] = str(self.version)
        item["metadata"].setdefault("generation", 1)
        self.objects[key] = item
        self._tell(key, kind, item)
        return item

    def set_status(self, kind: str, name: str, **status: Any) -> None:
        item = copy.deepcopy(self.find(kind, name))
        item["status"] = {"observedGeneration": item["metadata"].get("generation", 1), **status}
        self.put(item)

    def remove(self, kind: str, name: str) -> None:
        item = self.find(kind, name)
        key = self.key(item)
        self.version += 1
        del self.objects[key]
        self._tell(key, "DELETED", item)

    def find(self, kind: str, name: str) -> Object:
        return next(
            o for o in self.objects.values() if o["kind"] == kind and o["metadata"]["name"] == name
        )

    def names(self, kind: str) -> set[str]:
        return {o["metadata"]["name"] for o in self.objects.values() if o["kind"] == kind}

    def break_watches(self) -> None:
        """Cut every open watch, as a restarting API server does."""
        for queues in self._watchers.values():
            for queue in queues:
                queue.put_nowait(None)

    # the API

    def key(self, item: Object) -> Key:
        plural, is_namespaced = self.kinds[item["apiVersion"]][item["kind"]]
        namespace = item["metadata"].get("namespace", "") if is_namespaced else ""
        return item["apiVersion"], plural, namespace, item["metadata"]["name"]

    def _tell(self, key: Key, kind: str, item: Object) -> None:
        event = {"type": kind, "object": copy.deepcopy(item)}
        self._history.append((self.version, key[:2], event))
        for queue in self._watchers[key[0], key[1]]:
            queue.put_nowait(event)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = "/" + request.match_info["path"]
        self.requests.append((request.method, path, dict(request.query)))
        for index, (method, part, status, body) in enumerate(self.fails):
            if method == request.method and part in path:
                del self.fails[index]
                return _status(status, body)
        pieces = path.strip("/").split("/")
        version = pieces[1] if pieces[0] == "api" else "/".join(pieces[1:3])
        rest = pieces[2:] if pieces[0] == "api" else pieces[3:]
        if version not in self.kinds:
            return _status(404, "the server could not find the requested resource")
        if not rest:
            return self._discovery(version)
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        key = (version, rest[0], namespace, rest[1] if len(rest) > 1 else "")
        if rest[2:] == ["log"]:
            return web.Response(text="".join(f"{line}\n" for line in self.logs[rest[1]]))
        if not key[3] and request.method == "GET":
            return await self._collection(request, key)
        return await self._one(request, key)

    def _discovery(self, version: str) -> web.Response:
        found = [
            {"name": plural, "kind": kind, "namespaced": is_namespaced}
            for kind, (plural, is_namespaced) in self.kinds[version].items()
        ]
        found += [
            {"name": f"{r['name']}/status", **r} | {"name": f"{r['name']}/status"} for r in found
        ]
        return web.json_response({"kind": "APIResourceList", "resources": found})

    async def _collection(self, request: web.Request, key: Key) -> web.StreamResponse:
        name = request.query.get("fieldSelector", "").removeprefix("metadata.name=")
        if "=" in name:
            name = ""
        labels = request.query.get("labelSelector", "")

        def chosen(item: Object) -> bool:
            data = item["metadata"]
            own = data.get("labels") or {}
            wanted = [part.partition("=") for part in labels.split(",") if part]
            fits = all(k in own and (not sep or own[k] == v) for k, sep, v in wanted)
            return fits and name in ("", data["name"])

        if request.query.get("watch") == "true":
            return await self._watch(request, key, chosen)
        items = [
            {k: v for k, v in item.items() if k not in ("kind", "apiVersion")}
            for (version, plural, namespace, _), item in self.objects.items()
            if (version, plural) == key[:2] and key[2] in ("", namespace) and chosen(item)
        ]
        start, limit = int(request.query.get("continue", "0")), int(request.query.get("limit", 500))
        more = {"continue": str(start + limit)} if start + limit < len(items) else {}
        data = {"resourceVersion": str(self.version), **more}
        return web.json_response({"metadata": data, "items": items[start : start + limit]})

    async def _watch(
        self, request: web.Request, key: Key, chosen: Callable[[Object], bool]
    ) -> web.StreamResponse:
        queue: asyncio.Queue[Object | None] = asyncio.Queue()
        self._watchers[key[:2]].append(queue)
        since = int(request.query.get("resourceVersion") or 0)
        for version, where, event in self._history:  # what came between the list and this watch
            if version > since and where == key[:2]:
                queue.put_nowait(event)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        try:
            if since < 0:
                gone = {"kind": "Status", "code": 410, "message": "too old resource version"}
                await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
                return response
            while (news := await queue.get()) is not None:
                if chosen(news["object"]):
                    await response.write(json.dumps(news).encode() + b"\n")
                    if self.watch_breaks:
                        self.watch_breaks -= 1
                        assert request.transport
                        request.transport.close()
                        return response
        finally:
            self._watchers[key[:2]].remove(queue)
        return response

    async def _one(self, request: web.Request, key: Key) -> web.StreamResponse:
        live = self.objects.get(key)
        match request.method:
            case "GET":
                return web.json_response(live) if live else _status(404, f"{key[3]} not found")
            case "DELETE":
                if live is None:
                    return _status(404, f"{key[3]} not found")
                self.remove(live["kind"], key[3])
                return web.json_response({"kind": "Status", "status": "Success"})
            case "POST":
                return self._create(key, await request.json())
            case _:
                return await self._patch(request, key, live)

    def _create(self, key: Key, item: Object) -> web.Response:
        whole = (*key[:3], item["metadata"]["name"])
        if whole in self.objects:
            return _status(409, f"{whole[3]} already exists")
        return web.json_response(self.put(item), status=201)

    async def _patch(
        self, request: web.Request, key: Key, live: Object | None
    ) -> web.StreamResponse:
        body = json.loads(await request.read())
        is_apply = request.content_type == "application/apply-patch+yaml"
        if key[2] and ("v1", "namespaces", "", key[2]) not in self.objects:
            return _status(404, f'namespaces "{key[2]}" not found')
        if not is_apply and live is None:
            return _status(404, f"{key[3]} not found")
        us = (request.query["fieldManager"], "Apply" if is_apply else "Update")
        if is_apply and live and request.query.get("force") != "true":
            theirs = self._owned_by_others(key, body, live, us)
            if theirs:
                return _conflict(theirs)
        made = copy.deepcopy(live or {})
        _merge(made, body)
        if self.defaults is not None:
            self.defaults(made)
        if live is not None and {**made, "metadata": 0} != {**live, "metadata": 0}:
            made["metadata"]["generation"] = made["metadata"].get("generation", 1) + 1
        if request.query.get("dryRun") == "All":
            return web.json_response(made)
        self.put(made)
        self.owners[key].update({path: us for path in field_paths(body)})
        if self.on_apply is not None:
            again = self.on_apply(made)
            if again is not None:
                await again
        return web.json_response(self.objects[key])

    def _owned_by_others(
        self, key: Key, wanted: Object, live: Object, us: tuple[str, str]
    ) -> dict[str, str]:
        """The fields that somebody else set to another value, each with who that is."""
        has = field_paths(live)
        whole = live["metadata"].get("x-owner")
        found = {}
        for path, value in field_paths(wanted).items():
            owner = (whole, "Update") if whole else self.owners[key].get(path, us)
            if owner != us and path in has and has[path] != value:
                found[path] = str(owner[0])
        return found


def field_paths(item: Object, at: str = "") -> dict[str, Any]:
    """Every field that can be owned, by its path."""
    found: dict[str, Any] = {}
    for name, value in item.items():
        path = f"{at}.{name}"
        if path in (".apiVersion", ".kind", ".metadata.name", ".metadata.namespace"):
            continue
        found |= field_paths(value, path) if isinstance(value, dict) and value else {path: value}
    return found


def _merge(target: Object, change: Object) -> None:
    for key, value in change.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = copy.deepcopy(value)


def _status(code: int, body: Object | str) -> web.Response:
    if isinstance(body, str):
        body = {"kind": "Status", "status": "Failure", "code": code, "message": body}
    headers = {"Retry-After": "0"} if code == 429 else {}
    return web.json_response(body, status=code, headers=headers)


def _conflict(theirs: dict[str, str]) -> web.Response:
    causes = [
        {"reason": "FieldManagerConflict", "message": f'conflict with "{owner}"', "field": path}
        for path, owner in theirs.items()
    ]
    body = {
        "kind": "Status",
        "code": 409,
        "reason": "Conflict",
        "message": f"Apply failed with {len(causes)} conflicts",
        "details": {"causes": causes},
    }
    return web.json_response(body, status=409)
