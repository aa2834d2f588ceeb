"""The settings of `retrieve` in a plan, and what a search asks for.

Called by the steps of retrieval, and by `steps.check`, which runs where no numpy is: it must not import the index.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from eventing.errors import BadRequest
from eventing.store.vector_store.query import MOST_STORES, VectorQuery, parse_query
from steps.index.filter import parse_filter

CONTEXT_CHARACTERS: Final = 12_000
_SETTINGS: Final = frozenset(
    {
        "vector_store_ids",
        "vector_store_names",
        "max_num_results",
        "filters",
        "ranking_options",
        "context_characters",
        "allowed_hosts",
    }
)


def query_of(texts: Any, options: Mapping[str, Any]) -> VectorQuery:
    """The search. Raises `BadRequest`."""
    query = parse_query(texts, options)
    parse_filter(query.filters)
    return query


def check_retrieve(settings: Mapping[str, Any]) -> None:
    """Raises `BadRequest` for settings of `retrieve` in a plan that no search could have."""
    for name in settings.keys() - _SETTINGS:
        raise BadRequest(f"{name} is not supported", name)
    names = settings.get("vector_store_names")
    if names is None:
        store_ids(settings)
    elif not _are_words(names) or not names or "vector_store_ids" in settings:
        message = "vector_store_names must be a list of names, and stand without vector_store_ids"
        raise BadRequest(message, "vector_store_names")
    query_of("x", settings)
    characters = settings.get("context_characters", CONTEXT_CHARACTERS)
    if isinstance(characters, bool) or not isinstance(characters, int) or characters < 1:
        raise BadRequest("context_characters must be a whole number above 0", "context_characters")
    if not _are_words(settings.get("allowed_hosts", [])):
        raise BadRequest("allowed_hosts must be a list of host names", "allowed_hosts")


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def store_ids(owner: Mapping[str, Any]) -> Sequence[str]:
    """The vector stores that a request or a plan names. Raises `BadRequest`."""
    ids = owner.get("vector_store_ids")
    if not isinstance(ids, Sequence) or isinstance(ids, str) or not 1 <= len(ids) <= MOST_STORES:
        message = f"vector_store_ids must name 1 to {MOST_STORES} vector stores"
        raise BadRequest(message, "vector_store_ids")
    return [str(each) for each in ids]
