"""`/v1/keys`: the API keys of the caller's tenant: create, list, rotate, revoke.

Called by `api.wiring`. Only where keys lie in Redis (`TORPOR_KEYS_SOURCE=redis`); those of a file are its owner's. A
credential can give no more than it has itself. Must not know how a key is checked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NotRequired

import structlog
from starlette.responses import Response
from typing_extensions import TypedDict

from api.auth.principal import Scope
from api.http.body import parse_object
from api.http.described import described
from api.openapi.operation import Body
from api.routes.jobs import json_response
from api.routes.route import Call, Routes
from api.view.page import Deleted
from eventing.api_key import (
    DEFAULT_SCOPES,
    SCOPES,
    ApiKey,
    RedisKeys,
    check_models,
    mint,
    rotate,
)
from eventing.clock import Clock
from eventing.errors import BadRequest, Forbidden, InvalidJob, NotFound, WrongState
from eventing.job.call.rule import check, number


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDeps:
    """The dependencies of `/v1/keys`; no `keys` where they do not lie in Redis."""

    keys: RedisKeys | None
    clock: Clock


@described
class KeyView(TypedDict):
    """An API key, without its text."""

    id: str
    object: Literal["key"]
    name: str
    scopes: list[str]
    created_at: int
    """Times are seconds since 1970"""
    expires_at: int | None
    requests_per_minute: int | None
    """Calls other than GET, beside the limits of the tenant; null for no limit of its own"""
    budget_per_month: float | None
    """What its jobs may cost in a calendar month (UTC)"""
    models: list[str] | None
    """The models that it may use; null for all that its tenant may"""
    key: NotRequired[str]
    """Its text: shown when it is made, and never again"""


class KeyList(TypedDict):
    """Keys, oldest first."""

    object: Literal["list"]
    data: list[KeyView]


routes: Routes[KeyDeps] = Routes("keys")

_MOST_MODELS: Final = 100
_MOST_KEYS: Final = 200
_LONGEST_NAME: Final = 256
_LONGEST_S: Final = 10 * 366 * 24 * 3600
_DAY_S: Final = 24 * 3600
_MOST_CALLS: Final = 1_000_000_000
_CREATE: Final = Body(
    "KeyRequest",
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": _LONGEST_NAME},
            "scopes": {
                "type": "array",
                "minItems": 1,
                "items": {"enum": list(SCOPES)},
                "description": f"{', '.join(DEFAULT_SCOPES)} when it is left out",
            },
            "expires_after_s": {"type": ["integer", "null"], "minimum": 1, "maximum": _LONGEST_S},
            "requests_per_minute": {
                "type": ["integer", "null"],
                "minimum": 1,
                "maximum": _MOST_CALLS,
            },
            "budget_per_month": {
                "type": ["number", "null"],
                "minimum": 0,
                "maximum": _MOST_CALLS,
                "description": "what its jobs may cost in a calendar month (UTC)",
            },
            "models": {
                "type": ["array", "null"],
                "minItems": 1,
                "maxItems": _MOST_MODELS,
                "items": {"type": "string"},
                "description": "the models that it may use; all that this call's credential may when it is left out",
            },
        },
    },
)
_ROTATE: Final = Body(
    "KeyRotation",
    {
        "type": "object",
        "properties": {
            "overlap_s": {
                "type": "integer",
                "minimum": 0,
                "maximum": 30 * _DAY_S,
                "default": _DAY_S,
                "description": "how long the old key stays valid",
            }
        },
    },
    is_required=False,
)
_log = structlog.get_logger()


@routes.operation("GET", "/v1/keys", Scope.ADMIN, answers=KeyList, refuses=(404,))
async def list_keys(call: Call[KeyDeps]) -> Response:
    """List the keys of your tenant, oldest first, without their texts."""
    found = await _keys(call).list(call.principal.tenant)
    return json_response({"object": "list", "data": [_view(key) for key in found]})


@routes.operation(
    "POST", "/v1/keys", Scope.ADMIN, body=_CREATE, answers=KeyView, refuses=(404, 409)
)
async def create_key(call: Call[KeyDeps]) -> Response:
    """Create a key for your tenant. Its text is in this answer only.

    It can have no scope, and use no model, that the credential of this call has not.
    """
    store, body = _keys(call), await call.read_object()
    if len(await store.list(call.principal.tenant)) >= _MOST_KEYS:
        raise WrongState(f"a tenant has at most {_MOST_KEYS} keys")
    now_s = call.deps.clock.wall_ms() // 1000
    kept_s = _whole(body, "expires_after_s", _LONGEST_S)
    key, text = mint(
        call.principal.tenant,
        now_s=now_s,
        scopes=_scopes(call, body.get("scopes")),
        name=_name(body.get("name", "")),
        expires_s=now_s + kept_s if kept_s else 0,
        requests_per_minute=_whole(body, "requests_per_minute", _MOST_CALLS),
        budget_per_month=_budget(body.get("budget_per_month")),
        models=_models(call, body.get("models")),
    )
    await store.put(key)
    _log.info("key created", action="create_key", key_id=key.id)
    return json_response(_view(key) | {"key": text})


@routes.operation(
    "POST", "/v1/keys/{id}/rotate", Scope.ADMIN, body=_ROTATE, answers=KeyView, refuses=(404,)
)
async def rotate_key(call: Call[KeyDeps]) -> Response:
    """Make a new key like this one, which stays valid for `overlap_s` (a day)."""
    raw = await call.read()
    body = parse_object(raw) if raw else {}
    old = await _own(call)
    _check_held(call, old.scopes)
    _check_models(call, old.models)
    overlap_s = _whole(body, "overlap_s", 30 * _DAY_S, least=0, default=_DAY_S)
    now_s = call.deps.clock.wall_ms() // 1000
    key, text = await rotate(_keys(call), old.id, now_s=now_s, overlap_s=overlap_s)
    _log.info("key rotated", action="rotate_key", key_id=old.id)
    return json_response(_view(key) | {"key": text})


@routes.operation("DELETE", "/v1/keys/{id}", Scope.ADMIN, answers=Deleted, refuses=(404,))
async def revoke_key(call: Call[KeyDeps]) -> Response:
    """Revoke a key. An api process that has just seen it forgets it within 5 s."""
    key = await _own(call)
    await _keys(call).remove(key.id)
    _log.info("key revoked", action="revoke_key", key_id=key.id)
    return json_response({"id": key.id, "object": "key.deleted", "deleted": True})


def _budget(value: Any) -> float:
    """Raises `InvalidJob`."""
    if value is None:
        return 0.0
    check("", value, number(0, _MOST_CALLS), "budget_per_month")
    return float(value)


def _models(call: Call[KeyDeps], value: Any) -> tuple[str, ...]:
    """The models asked for. Raises `InvalidJob`, and `Forbidden` for one that the caller may not use."""
    if value is None:
        return tuple(sorted(call.principal.models))
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_MODELS:
        raise InvalidJob(f"models must be a list of 1 to {_MOST_MODELS} names", "models")
    try:
        named = check_models(value)
    except BadRequest as error:
        raise InvalidJob(error.message, error.field) from error
    _check_models(call, named)
    return named


def _check_models(call: Call[KeyDeps], models: tuple[str, ...]) -> None:
    own = call.principal.models
    if own and not (models and own.issuperset(models)):
        raise Forbidden("this credential may not use all of the key's models")


def _keys(call: Call[KeyDeps]) -> RedisKeys:
    if call.deps.keys is None:
        raise NotFound("keys are not kept in Redis here (TORPOR_KEYS_SOURCE)")
    return call.deps.keys


async def _own(call: Call[KeyDeps]) -> ApiKey:
    key = await _keys(call).find(call.request.path_params["id"])
    if key is None or key.tenant != call.principal.tenant:
        raise NotFound("no such key")
    return key


def _view(key: ApiKey) -> KeyView:
    return {
        "id": key.id,
        "object": "key",
        "name": key.name,
        "scopes": list(key.scopes),
        "created_at": key.created_s,
        "expires_at": key.expires_s or None,
        "requests_per_minute": key.requests_per_minute or None,
        "budget_per_month": key.budget_per_month or None,
        "models": list(key.models) or None,
    }


def _scopes(call: Call[KeyDeps], value: Any) -> tuple[str, ...]:
    """The scopes asked for. Raises `InvalidJob`, and `Forbidden` for one that the caller has not."""
    if value is None:
        held = tuple(scope for scope in DEFAULT_SCOPES if scope in call.principal.scopes)
        value = list(held)
    if not isinstance(value, list) or not value or any(scope not in SCOPES for scope in value):
        raise InvalidJob(f"scopes must be of: {', '.join(SCOPES)}", "scopes")
    _check_held(call, value)
    return tuple(dict.fromkeys(value))


def _check_held(call: Call[KeyDeps], scopes: Any) -> None:
    if missing := [scope for scope in scopes if scope not in call.principal.scopes]:
        raise Forbidden(f"this credential lacks the scope {missing[0]}, and cannot give it")


def _name(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_NAME:
        raise InvalidJob(f"name must be text of at most {_LONGEST_NAME} characters", "name")
    return value


def _whole(
    body: Mapping[str, Any], name: str, most: int, *, least: int = 1, default: int = 0
) -> int:
    """A whole number of the body; `default` when it is not set. Raises `InvalidJob`."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidJob(f"{name} must be a whole number from {least} to {most}", name)
    return value
