"""The exact cache as pure values: what a caller and a model's configuration ask of it, and how it served a job.

Called by the api and the broker's ingress, which ask for a job before it is recorded, by the stores, and by the views.
The look-up itself is part of the script that records the job (`submit.lua`). The key of an entry is made in
`eventing.job.cache.key`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import orjson

from eventing.job.cache.key import cache_key
from eventing.job.call.moderation import MODERATION_URL
from eventing.job.pipelines.document import pipelines_error, read_pipelines
from eventing.job.plan import Plan
from eventing.known_fields import known_fields

DEFAULT_TTL_S: Final = 3600
LONGEST_TTL_S: Final = 24 * 3600
_RULE_FIELDS: Final = frozenset({"ttl_s", "sampled", "tools"})
_MEMORY: Final = "memory"
_RETRIEVE: Final = "retrieve"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRule:
    """How a model's answers are cached without being asked to: an entry's lifetime, and whether calls with sampling
    (a temperature other than 0, several answers) or with tools are cached as well.
    """

    ttl_s: int = DEFAULT_TTL_S
    sampled: bool = False
    tools: bool = False


CacheRules = Mapping[str, CacheRule]
"""The rule of each public model name that has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheControl:
    """Request directives of RFC 9111, section 5.2.1, as far as they say something here."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age_s: int | None = None

    @property
    def text(self) -> str:
        """The directives as a header has them; empty for none."""
        flags = {
            "no-cache": self.no_cache,
            "no-store": self.no_store,
            "only-if-cached": self.only_if_cached,
        }
        given = [name for name, is_given in flags.items() if is_given]
        if self.max_age_s is not None:
            given.append(f"max-age={self.max_age_s}")
        return ", ".join(given)

    @property
    def opts_in(self) -> bool:
        """True when the caller asks for cached answers, whatever the model's rule is."""
        return bool(self.max_age_s) or self.only_if_cached


class CacheStatus(StrEnum):
    """How the cache served a job."""

    HIT = "hit"  #: answered by another job's answer; nothing is generated
    MISS = "miss"  #: no answer was there; the job's own will be kept
    BYPASS = "bypass"  #: neither looked for nor kept; `reason` says why


class CacheKind(StrEnum):
    """How the answer of a hit was found."""

    EXACT = "exact"  #: the same request was answered before
    COALESCED = "coalesced"  #: the same request was running already
    SEMANTIC = "semantic"  #: a request of the same meaning was answered before


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUse:
    """What a record says of the cache. `key` names the entry; `source_job` gave, or gives, the answer, which was
    `age_s` old. `left_s` is for how long the entry was to be served yet.
    """

    status: CacheStatus
    kind: CacheKind | None = None
    key: str = ""
    age_s: int = 0
    left_s: int = 0
    source_job: str = ""
    similarity: float | None = None
    reason: str = ""
    ttl_s: int = 0  #: of the entry that the job's answer becomes
    fwd: str = ""  #: why it went on to a predictor, as RFC 9211 has it
    saved_usage: Mapping[str, Any] | None = None

    @property
    def is_hit(self) -> bool:
        return self.status is CacheStatus.HIT

    def to_json(self) -> bytes:
        record = {
            name: value
            for name in self.__slots__
            if (value := getattr(self, name)) not in (None, "", 0)
        }
        return orjson.dumps(record)


def cache_use_of(raw: bytes | str) -> CacheUse:
    """The value that `to_json` or a script wrote."""
    record = known_fields(CacheUse, orjson.loads(raw))
    record["status"] = CacheStatus(record["status"])
    if "kind" in record:
        record["kind"] = CacheKind(record["kind"])
    return CacheUse(**record)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheAsk:
    """What the script that records a job does about the cache. Without a `key` nothing is looked up or kept, for
    `reason`.
    """

    key: str = ""
    ttl_s: int = DEFAULT_TTL_S
    max_age_s: int = LONGEST_TTL_S
    reads: bool = True
    only_if_cached: bool = False
    reason: str = ""

    @property
    def use(self) -> CacheUse:
        """What the record says when no answer is found."""
        if not self.key:
            return CacheUse(status=CacheStatus.BYPASS, reason=self.reason, fwd="bypass")
        fwd = "uri-miss" if self.reads else "request"
        return CacheUse(status=CacheStatus.MISS, key=self.key, ttl_s=self.ttl_s, fwd=fwd)


def cache_ask(
    url: str,
    body: Mapping[str, Any],
    *,
    tenant: str,
    rule: CacheRule | None,
    control: CacheControl,
    plan: Plan | None = None,
    kind: str = "",
    has_context: bool = False,
    index_versions: Mapping[str, str] | None = None,
) -> CacheAsk | None:
    """What is asked of the cache for a call; None when neither the model's rule nor the caller asks for anything.

    `kind` tells calls of different APIs apart that run as the same job; `has_context` is true for a turn of a
    conversation. `index_versions` are those of the vector stores whose passages a plan adds; an answer made of them is
    not kept where they are not known.
    """
    if control.no_store:
        return CacheAsk(reason="no-store", only_if_cached=control.only_if_cached)
    if rule is None and not control.opts_in:
        return None
    adding = set(plan.names) & {_MEMORY, _RETRIEVE} if plan else set()
    is_known = adding <= {_RETRIEVE} and (not adding or index_versions is not None)
    is_alone = not has_context and is_known
    if reason := _unfit(url, body, rule, control) if is_alone else "context":
        return CacheAsk(reason=reason, only_if_cached=control.only_if_cached)
    version = plan.version if plan else ""
    ttl_s = rule.ttl_s if rule else max(DEFAULT_TTL_S, control.max_age_s or 0)
    return CacheAsk(
        key=cache_key(
            url,
            body,
            tenant=tenant,
            plan_version=version,
            kind=kind,
            index_versions=index_versions,
        ),
        ttl_s=min(ttl_s, LONGEST_TTL_S),
        max_age_s=LONGEST_TTL_S if control.max_age_s is None else control.max_age_s,
        reads=not control.no_cache and control.max_age_s != 0,
        only_if_cached=control.only_if_cached,
    )


def _unfit(
    url: str,
    body: Mapping[str, Any],
    rule: CacheRule | None,
    control: CacheControl,
) -> str:
    """Why the call's answer is not to be served again; empty when it may be."""
    if control.opts_in or rule is None:
        return ""
    if not rule.sampled and is_sampled(url, body):
        return "sampled"
    if not rule.tools and body.get("tools") and body.get("tool_choice") != "none":
        return "tools"
    return ""


def is_sampled(url: str, body: Mapping[str, Any]) -> bool:
    """True when the same call may be answered otherwise each time. A temperature that is not set is the engine's."""
    if url in ("/v1/embeddings", MODERATION_URL):
        return False
    several = any((body.get(name) or 1) != 1 for name in ("n", "best_of"))
    return several or body.get("temperature") != 0


def parse_cache_control(text: str) -> CacheControl:
    """The directives of a `Cache-Control` header. Unknown ones are ignored; a `max-age` that is no number accepts
    nothing that is stored.
    """
    found: dict[str, str] = {}
    for directive in text.split(","):
        name, _, value = directive.partition("=")
        found.setdefault(name.strip().lower(), value.strip().strip('"'))
    max_age = found.get("max-age")
    is_number = max_age is not None and max_age.isascii() and max_age.isdigit()
    return CacheControl(
        no_cache="no-cache" in found or (max_age is not None and not is_number),
        no_store="no-store" in found,
        only_if_cached="only-if-cached" in found,
        max_age_s=min(int(max_age or 0), LONGEST_TTL_S) if is_number else None,
    )


def directives(header: str, body: Mapping[str, Any]) -> str:
    """The caller's directives, in one form. `store: false` in a call says `no-store` too: what a caller does not want
    to be stored is no answer for another call.
    """
    control = parse_cache_control(header)
    return (replace(control, no_store=True) if body.get("store") is False else control).text


def load_cache_rules(path: Path) -> CacheRules:
    """The rules in a pipelines file. Raises `BadRequest` naming the field, or that the file cannot be read."""
    return parse_cache_rules(read_pipelines(path))


def parse_cache_rules(document: Any) -> CacheRules:
    """The rules of a document `{MODEL: {cache: {exact: {ttl_s, sampled, tools}}}}`. Raises `BadRequest` naming the
    field.
    """
    entries = document if isinstance(document, Mapping) else {}
    caches = {
        str(model): entry["cache"]
        for model, entry in entries.items()
        if isinstance(entry, Mapping) and "cache" in entry
    }
    return {model: _rule(f"{model}.cache", cache) for model, cache in caches.items()}


def _rule(where: str, cache: Any) -> CacheRule:
    if not isinstance(cache, Mapping) or cache.keys() != {"exact"}:
        raise pipelines_error(where, "must be an object with exact")
    exact = {} if cache["exact"] is None else cache["exact"]
    if not isinstance(exact, Mapping):
        raise pipelines_error(f"{where}.exact", "must be an object")
    for name in exact.keys() - _RULE_FIELDS:
        raise pipelines_error(f"{where}.exact.{name}", "is not supported")
    ttl_s = exact.get("ttl_s", DEFAULT_TTL_S)
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int) or not 1 <= ttl_s <= LONGEST_TTL_S:
        raise pipelines_error(
            f"{where}.exact.ttl_s", f"must be whole seconds up to {LONGEST_TTL_S}"
        )
    for name in ("sampled", "tools"):
        if not isinstance(exact.get(name, False), bool):
            raise pipelines_error(f"{where}.exact.{name}", "must be true or false")
    return CacheRule(**exact)
