"""The key under which an answer is kept: a digest of everything that the answer depends on. Pure.

Called by `eventing.job.cache.cache`. Two calls have one key when they are the same JSON value, whatever the order of
their keys and the spelling of their numbers, apart from fields that do not change the answer, and from fields that
only name what is so without them.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import orjson

KEY_PREFIX: Final = "cache_"
IGNORED: Final = frozenset({"stream", "stream_options", "metadata", "user", "store", "background"})
"""Fields that change how an answer is sent, kept or accounted, and not what it says."""
IGNORED_PREFIX: Final = "prompt_cache_"
_DEFAULTS: Final[Mapping[str, Any]] = {
    "n": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "stop": [],
    "logprobs": False,
    "top_logprobs": 0,
    "parallel_tool_calls": True,
    "echo": False,
    "encoding_format": "float",
    "response_format": {"type": "text"},
}
"""What a field that is left out means, where no engine or model says otherwise. A temperature is not among them: it
has a default of each model.
"""


def cache_key(
    url: str,
    body: Mapping[str, Any],
    *,
    tenant: str,
    plan_version: str = "",
    kind: str = "",
    index_versions: Mapping[str, str] | None = None,
) -> str:
    """The entry's name. `index_versions` are those of the vector stores that the answer is made of."""
    record = {
        "tenant": tenant,
        "url": url,
        "kind": kind,
        "plan": plan_version,
        "indexes": dict(index_versions or {}),
        "body": canonical_body(url, body),
    }
    digest = hashlib.sha256(orjson.dumps(record, option=_OPTIONS)).hexdigest()
    return f"{KEY_PREFIX}{digest[:48]}"


_OPTIONS: Final = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS


def canonical_body(url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the answer depends on, each in one form."""
    defaults = _DEFAULTS if url != "/v1/completions" else {**_DEFAULTS, "logprobs": None}
    kept = {}
    for name, value in body.items():
        if value is None or _is_ignored(name, value):
            continue
        value = _canonical([value] if name == "stop" and isinstance(value, str) else value)
        if name not in defaults or orjson.dumps(value) != orjson.dumps(defaults[name]):
            kept[name] = value
    return kept


def _is_ignored(name: str, value: Any) -> bool:
    if name == "stream_options":  # with usage in each chunk, a stream's record is another
        return not (isinstance(value, Mapping) and value.get("continuous_usage_stats"))
    return name in IGNORED or name.startswith(IGNORED_PREFIX)


def _canonical(value: Any) -> Any:
    """The value with each number in one form: 1, 1.0 and 1e0 are the same in JSON, and true is none of them."""
    if isinstance(value, Mapping):
        return {name: _canonical(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_canonical(each) for each in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value
