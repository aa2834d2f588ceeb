"""The fields of OpenAI's moderations, and of a call that asks for one inline. Pure.

Called by `eventing.job.call.fields`, by the api for responses, and by what moderates.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from eventing.errors import InvalidJob
from eventing.job.call.rule import NAME, OBJECT, TEXT, TEXT_SCHEMA, TEXTS, Schema, check, one_of

MODERATION_URL: Final = "/v1/moderations"
"""OpenAI's judgement of texts."""

MODERATION: Final = "moderation"
"""OpenAI's field of a request that is to be judged, and of the answer that says how."""

_MOST_JUDGED: Final = 512
"""Texts of one moderation."""
_MODE: Final = one_of("score", "block")
_SIDE_SCHEMA: Final[Schema] = {
    "type": ["object", "null"],
    "required": ["mode"],
    "properties": {"mode": _MODE.schema},
    "additionalProperties": False,
}
MODERATION_SCHEMA: Final[Schema] = {
    "type": "object",
    "required": ["model"],
    "additionalProperties": False,
    "properties": {
        "model": NAME.schema,
        "policy": {
            "type": ["object", "null"],
            "properties": {"input": _SIDE_SCHEMA, "output": _SIDE_SCHEMA},
            "additionalProperties": False,
        },
    },
}
"""Which model judges the request and its answer, and whether that only scores or blocks."""
JUDGED_SCHEMA: Final[Schema] = {
    "type": ["string", "array"],
    "minItems": 1,
    "maxItems": _MOST_JUDGED,
    "description": "a text, a list of texts, or a list of parts, which are judged as one",
    "items": {
        "type": ["string", "object"],
        "required": ["type"],
        "properties": {"type": {"enum": ["text", "image_url"]}, "text": TEXT_SCHEMA},
    },
}


def check_moderation(value: Any, where: str) -> None:
    """Raises `InvalidJob` for what is no `moderation {model, policy}`."""
    if value is None:
        return
    _check_members(value, where, ("model", "policy"))
    check(f"{where}.", value.get("model"), NAME, "model")
    policy = value.get("policy")
    if policy is None:
        return
    _check_members(policy, f"{where}.policy", ("input", "output"))
    for side, rule in policy.items():
        if rule is not None:
            _check_members(rule, f"{where}.policy.{side}", ("mode",))
            check(f"{where}.policy.{side}.", rule.get("mode"), _MODE, "mode")


def _check_members(value: Any, where: str, known: Collection[str]) -> None:
    """An object with no other members: one that is not understood could be a check that is not made."""
    check("", value, OBJECT, where)
    for name in value.keys() - set(known):
        raise InvalidJob(f"{where}.{name:.40} is not supported", f"{where}.{name:.40}")


def check_judged(value: Any) -> None:
    """A text, texts, or parts."""
    where = "body.input"
    if isinstance(value, str) or (TEXTS.is_kept_by(value) and 0 < len(value) <= _MOST_JUDGED):
        return
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_JUDGED:
        raise InvalidJob(f"{where} must be text, or a list of 1 to {_MOST_JUDGED} texts", where)
    for index, part in enumerate(value):
        part_where = f"{where}[{index}]"
        if not isinstance(part, Mapping):
            raise InvalidJob(f"{where} must hold texts, or parts", where)
        check(f"{part_where}.", part.get("type"), one_of("text", "image_url"), "type")
        if part["type"] == "text":
            check(f"{part_where}.", part.get("text"), TEXT, "text")
