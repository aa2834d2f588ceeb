"""What is searched for in vector stores, in OpenAI's words. Pure.

Called by the api, which refuses an invalid search before it becomes a job, and by the steps that search. Filters are
checked by the steps (`steps.index.filter`) and, before them, by the api only in their form.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from eventing.errors import BadRequest

SEARCH_URL: Final = "/v1/vector_stores/search"
"""The `url` of a job that searches; its body has `vector_store_ids` beside what callers send."""
SEARCH_STEP: Final = "search"
RETRIEVE_STEP: Final = "retrieve"
MOST_RESULTS: Final = 50
MOST_STORES: Final = 10
_RANKERS: Final = ("auto", "default-2024-11-15", "none")
_MOST_QUERIES: Final = 10
_QUERY_CHARACTERS: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorQuery:
    """A search. The ranker `none` compares vectors alone; the others fuse vectors and words with these weights."""

    texts: tuple[str, ...]
    max_num_results: int = 10
    filters: Mapping[str, Any] | None = None
    score_threshold: float = 0.0
    embedding_weight: float = 1.0
    text_weight: float = 1.0


def parse_query(texts: Any, options: Mapping[str, Any], where: str = "") -> VectorQuery:
    """The search that a request asks for; `options` has OpenAI's fields. Raises `BadRequest` naming the field,
    after `where`.
    """
    listed = [texts] if isinstance(texts, str) else texts
    if not isinstance(listed, list) or not 1 <= len(listed) <= _MOST_QUERIES:
        raise BadRequest(f"query must be a text, or 1 to {_MOST_QUERIES} texts", f"{where}query")
    for text in listed:
        if not isinstance(text, str) or not 1 <= len(text) <= _QUERY_CHARACTERS:
            message = f"query must have 1 to {_QUERY_CHARACTERS} characters"
            raise BadRequest(message, f"{where}query")
    count = options.get("max_num_results", 10)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_RESULTS:
        name = f"{where}max_num_results"
        raise BadRequest(f"{name} must be a whole number from 1 to {MOST_RESULTS}", name)
    filters = options.get("filters")
    if filters is not None and not isinstance(filters, Mapping):
        raise BadRequest(f"{where}filters must be an object", f"{where}filters")
    ranking = options.get("ranking_options") or {}
    threshold, embedding_weight, text_weight = _ranking(ranking, f"{where}ranking_options")
    return VectorQuery(
        texts=tuple(listed),
        max_num_results=count,
        filters=filters,
        score_threshold=threshold,
        embedding_weight=embedding_weight,
        text_weight=text_weight,
    )


def _ranking(ranking: Any, where: str) -> tuple[float, float, float]:
    if not isinstance(ranking, Mapping):
        raise BadRequest(f"{where} must be an object", where)
    ranker = ranking.get("ranker") or "auto"
    if ranker not in _RANKERS:
        raise BadRequest(f"{where}.ranker must be one of {', '.join(_RANKERS)}", f"{where}.ranker")
    threshold = _number(ranking, "score_threshold", where, 0.0, 1.0)
    hybrid = ranking.get("hybrid_search")
    if hybrid is None:
        return threshold, 1.0, 0.0 if ranker == "none" else 1.0
    if not isinstance(hybrid, Mapping):
        raise BadRequest(f"{where}.hybrid_search must be an object", f"{where}.hybrid_search")
    where = f"{where}.hybrid_search"
    weights = [
        _number(hybrid, name, where, 0.0, 1e6) for name in ("embedding_weight", "text_weight")
    ]
    if not any(weights):
        raise BadRequest(f"{where} needs a weight above 0", where)
    return threshold, weights[0], weights[1]


def _number(owner: Mapping[str, Any], name: str, where: str, least: float, most: float) -> float:
    value = owner.get(name)
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        message = f"{where}.{name} must be a number from {least:g} to {most:g}"
        raise BadRequest(message, f"{where}.{name}")
    return float(value)
