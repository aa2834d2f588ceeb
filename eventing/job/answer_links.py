"""Answers from retrieved passages and results of tools, without links that those may have planted. Pure.

Called wherever an answer leaves: the api's views, and result events. What is stored is what the model wrote.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from eventing.job.job import Job
from eventing.job.passage import without_links
from eventing.job.plan import TOOLS_STEP
from eventing.job.tools.request import LINKS

ANSWER_TEXTS: Final = ("reasoning", "reasoning_content", "content")
"""Names of the texts in a message or a delta, in the order in which they are written."""


def link_hosts(job: Job) -> Collection[str] | None:
    """Hosts, and whole addresses, that links of the answer may lead to; None for one that is shown as it is."""
    plan = job.plan
    retrieval, tools = (plan.step("retrieve"), plan.step(TOOLS_STEP)) if plan else (None, None)
    hosts = retrieval.settings.get("allowed_hosts", ()) if retrieval else ()
    links = tools.settings.get(LINKS) if tools else None
    if retrieval is None and not isinstance(links, list):
        return None
    own = links if isinstance(links, list) else ()
    return [*(str(host).lower() for host in hosts), *map(str, own)]


def shown_text(job: Job, text: str) -> str:
    """The text of an answer, without links that passages and tools may have planted."""
    hosts = link_hosts(job)
    return text if hosts is None else without_links(text, hosts)


def shown_result(job: Job) -> Mapping[str, Any] | None:
    """The result of a job, its texts as `shown_text` has them."""
    choices = (job.result or {}).get("choices")
    if link_hosts(job) is None or not isinstance(choices, list):
        return job.result
    return {**(job.result or {}), "choices": [_shown_choice(job, each) for each in choices]}


def _shown_choice(job: Job, choice: Any) -> Any:
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(message, Mapping):
        return choice
    texts = {
        name: shown_text(job, message[name])
        for name in ANSWER_TEXTS
        if isinstance(message.get(name), str)
    }
    return {**choice, "message": {**message, **texts}}
