"""The two steps of retrieval: `search` answers a search of vector stores, `retrieve` puts passages into a prompt.

Called by the steps process. Tools are never changed by what was found, and nothing of it becomes a system message.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from eventing.errors import BadRequest, NotFound
from eventing.job.job import JobError
from eventing.job.passage import Passage, last_user, text_of, with_passages
from eventing.job.pipelines.audit import AUDIT_TENANT, searched_tenant
from eventing.store.vector_store.query import MOST_STORES
from steps.handler import Answer, Continue, Refuse, Skip, StepCall, StepOutcome
from steps.index.index import ModelMismatch
from steps.retrieval.search import VectorSearch
from steps.retrieval.settings import CONTEXT_CHARACTERS, query_of, store_ids

_RESULTS: Final = 5
_QUESTION_CHARACTERS: Final = 2000
_DETAIL_BYTES: Final = 20_000


class SearchStep:
    """Answers a job whose request is a search."""

    def __init__(self, search: VectorSearch) -> None:
        self._search = search

    async def __call__(self, call: StepCall) -> StepOutcome:
        body = call.request.body
        try:
            query = query_of(body.get("query"), body)
            stores = store_ids(body)
            found = await self._search.search(call.job.tenant, stores, query)
        except (BadRequest, NotFound, ModelMismatch) as error:
            return Refuse(error=_error(error))
        page = {
            "object": "vector_store.search_results.page",
            "search_query": list(query.texts),
            "data": [_result(each) for each in found],
            "has_more": False,
            "next_page": None,
        }
        return Answer(result=page, detail={"found": len(found)})


class RetrieveStep:
    """Puts passages that fit the last user message before it."""

    def __init__(self, search: VectorSearch) -> None:
        self._search = search

    async def __call__(self, call: StepCall) -> StepOutcome:
        messages, settings = call.request.body.get("messages"), call.settings
        place = last_user(messages) if isinstance(messages, list) else None
        if not isinstance(messages, list) or place is None:
            return Skip(reason="no user message")
        question = text_of(messages[place]).strip()[-_QUESTION_CHARACTERS:]
        if not question:
            return Skip(reason="the user message has no text")
        tenant = searched_tenant(call.job)
        try:
            query = query_of(question, {"max_num_results": _RESULTS, **settings})
            stores = await self._stores(tenant, settings)
            if not stores:
                return Skip(reason="no vector store of that name")
            found = await self._search.search(tenant, stores, query)
        except (BadRequest, NotFound, ModelMismatch) as error:
            return Refuse(error=_error(error))
        passages = _fitting(found, int(settings.get("context_characters", CONTEXT_CHARACTERS)))
        detail: dict[str, Any] = {"found": len(passages), "queries": [question[:200]]}
        if not passages:
            return Continue(detail={**detail, "sources": []})
        detail["sources"] = _sources(passages)
        hosts = [str(host).lower() for host in settings.get("allowed_hosts", ())]
        changed = with_passages(
            messages,
            passages,
            secrets.token_hex(8),
            hosts=hosts,
            asks=call.job.tenant != AUDIT_TENANT,
        )
        body = {**call.request.body, "messages": changed}
        return Continue(request=replace(call.request, body=body), detail=detail)

    async def _stores(self, tenant: str, settings: Mapping[str, Any]) -> Sequence[str]:
        """The vector stores to search: by id, or those of the tenant that have one of some names. A plan is for all
        tenants; by names each one's own are searched.
        """
        names = settings.get("vector_store_names")
        if names is None:
            return store_ids(settings)
        if not isinstance(names, list | tuple) or "vector_store_ids" in settings:
            message = "vector_store_names must be a list, and stand without vector_store_ids"
            raise BadRequest(message, "vector_store_names")
        return (await self._search.named(tenant, names))[:MOST_STORES]


def _fitting(found: Sequence[Passage], characters: int) -> list[Passage]:
    """The best passages that fit; the first one is cut rather than left out."""
    kept: list[Passage] = []
    for passage in found:
        left = characters - sum(len(each.text) for each in kept)
        if len(passage.text) > left:
            return kept or [replace(passage, text=passage.text[:characters])]
        kept.append(passage)
    return kept


def _result(passage: Passage) -> dict[str, Any]:
    return {
        "file_id": passage.file_id,
        "filename": passage.filename,
        "score": passage.score,
        "attributes": dict(passage.attributes or {}),
        "content": [{"type": "text", "text": passage.text}],
    }


def _sources(passages: Sequence[Passage]) -> list[dict[str, Any]]:
    """Where passages are from, with their texts and attributes as far as the record of a step can hold them."""
    left = _DETAIL_BYTES
    sources: list[dict[str, Any]] = []
    for passage in passages:
        source: dict[str, Any] = {
            "file_id": passage.file_id,
            "filename": passage.filename[:200],
            "score": passage.score,
            "text": passage.text.encode()[:left].decode(errors="ignore"),
        }
        attributes = dict(passage.attributes or {})
        if attributes and len(orjson.dumps(attributes)) <= left:
            source["attributes"] = attributes
        left = max(0, left - len(orjson.dumps(source)))
        sources.append(source)
    return sources


def _error(error: BadRequest | NotFound | ModelMismatch) -> JobError:
    field = error.field if isinstance(error, BadRequest) else ""
    return JobError(code=error.code, message=error.message, field=field or "vector_store_ids")
